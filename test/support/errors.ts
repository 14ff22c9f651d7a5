// A wrong call must throw a GqaError with the right code whose message names the operation and the argument.

import { expect } from "vitest";
import { GqaError } from "../../lib/index";

// biome-ignore lint/suspicious/noExplicitAny: what no type would let through
export type Wrong = any;

export function caught(fn: () => unknown): GqaError {
  try {
    fn();
  } catch (error) {
    expect(error).toBeInstanceOf(GqaError);
    return error as GqaError;
  }
  throw new Error("expected a GqaError, nothing was thrown");
}

export async function rejected(promise: Promise<unknown>): Promise<GqaError> {
  const outcome = await promise.then(
    () => null,
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(GqaError);
  return outcome as GqaError;
}

/** An array whose iterator is the caller's own, and could as well never end: following it fails the test. */
export function trapped<T>(...items: T[]): T[] {
  const get = () => {
    throw new Error("a user's own iterator was followed");
  };
  return Object.defineProperty(items, Symbol.iterator, { get });
}

export function expectError(fn: () => unknown, code: string, ...names: (string | RegExp)[]): void {
  const error = caught(fn);
  expect(error.code, error.message).toBe(code);
  for (const name of names) expect(error.message).toMatch(name);
}
