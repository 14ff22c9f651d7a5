// The addon, and the block of doubles through which operations hand over their arguments.

import { isPromise } from "node:util/types";
import type { DType } from "../dtype";
import { fromNative } from "../errors";
import { loadAddon } from "../load";
import type { Addon, Ref, RowsRef } from "./types";

export const DTYPE_CODE: Record<DType, number> = { float32: 0, float16: 1, bfloat16: 2, int32: 3 };

/** Every function of the addon throws, and every promise of it rejects with, a `GqaError`. */
function withGqaErrors(raw: Addon): Addon {
  const guarded: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(raw)) {
    if (typeof value !== "function") {
      guarded[name] = value;
      continue;
    }
    const rethrow = (error: unknown): never => {
      throw fromNative(name, error);
    };
    guarded[name] = (...values: unknown[]): unknown => {
      try {
        const result: unknown = value(...values);
        return isPromise(result) ? result.catch(rethrow) : result;
      } catch (error) {
        return rethrow(error);
      }
    };
  }
  return guarded as unknown as Addon;
}

export const addon: Addon = withGqaErrors(loadAddon());
const args = addon.args;
let n = 0;

export function num(value: number): void {
  args[n++] = value;
}
export function ref(value: Ref | null): void {
  args[n++] = value === null ? 0 : value.id;
  args[n++] = value === null ? 0 : value.offset;
}
export function rows(value: RowsRef | null): void {
  ref(value);
  args[n++] = value === null ? 0 : value.stride;
}
export function begin(device: number): void {
  n = 0;
  num(device);
}

/** How many numbers have been written since begin(). */
export function count(): number {
  return n;
}
