// Checks of what a user passes: numbers, options objects and host arrays. Each refuses with
// INVALID_ARGUMENT that names operation, argument, expected and actual. Nothing here uses
// instanceof on typed arrays: under Jest and in vm contexts they come from another realm.

import { isSharedArrayBuffer, isTypedArray } from "node:util/types";
import { GqaError, invalid } from "./errors";

export const INT32_MAX = 0x7fffffff;
const FLOAT32_MAX = 3.4028234663852886e38;
/** The smallest number above 0 that float32 arithmetic keeps: some hardware takes less for 0. */
export const FLOAT32_MIN: number = 2 ** -126;

/** The first argument of every constructor: only this package has it. */
export const INTERNAL: unique symbol = Symbol("flash-gqa");

/** Refuses `new` from outside, which types forbid and JavaScript lets through. */
export function checkInternal(key: unknown, type: string, factory: string): void {
  if (key === INTERNAL) return;
  throw invalid(`new ${type}`, "the constructor is not for callers", `make one with ${factory}`);
}

/** A short picture of a value for messages. */
export function show(value: unknown): string {
  if (typeof value === "string") {
    return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value);
  }
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value === "function") return "a function";
  if (typeof value !== "object" || value === null) return String(value);
  const type = typedArrayType(value);
  if (type !== undefined) return `${type}(${(value as ArrayLike<unknown>).length})`;
  if (Array.isArray(value)) return `an array of ${value.length}`;
  return Object.prototype.toString.call(value); // "[object Map]"
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1]! + (a[i - 1]!.toLowerCase() === b[j - 1]!.toLowerCase() ? 0 : 1);
      next.push(Math.min(replaced, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}

/** The known name that a slip of the hand may have meant, as a question; "" where none is close. */
function guess(name: string, known: readonly string[]): string {
  if (name.length > 40) return "";
  let least = Math.ceil(name.length / 2);
  let best = "";
  for (const other of known) {
    const distance = editDistance(name, other);
    if (distance >= least) continue;
    least = distance;
    best = `, did you mean "${other}"?`;
  }
  return best;
}

/**
 * An options object: undefined is {}, and a name that is not in `known` is refused with the nearest
 * one.
 */
export function checkOptions<T extends object>(
  operation: string,
  value: T | undefined,
  known: readonly (keyof T & string)[],
  name: string = "options",
): Partial<T> {
  if (value === undefined) return {};
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw invalid(operation, `${name} expected an object, got ${show(value)}`);
  }
  for (const key of Object.keys(value)) {
    if (known.includes(key as keyof T & string)) continue;
    const what = `${name} has no ${show(key)}${guess(key, known)}`;
    throw invalid(operation, what, `known: ${known.join(", ")}`);
  }
  // A copy: a getter could give another value after it was checked.
  return { ...value };
}

/** An integer in [min, max]. `wayOut`: what else there is to do than to stay in it. */
export function checkInt(
  operation: string,
  name: string,
  value: unknown,
  min: number = 0,
  max: number = INT32_MAX,
  wayOut?: string,
): number {
  if (typeof value === "number" && Number.isInteger(value) && value >= min && value <= max) {
    return value === 0 ? 0 : value; // -0 is 0
  }
  const got = typeof value === "number" ? String(value) : `${show(value)} (${typeof value})`;
  throw invalid(operation, `${name} expected an integer in [${min}, ${max}], got ${got}`, wayOut);
}

/** A number that float32 can hold, in [min, max]. */
export function checkNumber(
  operation: string,
  name: string,
  value: unknown,
  min: number = -FLOAT32_MAX,
  max: number = FLOAT32_MAX,
): number {
  if (typeof value === "number" && value >= min && value <= max) return value;
  const got = typeof value === "number" ? String(value) : `${show(value)} (${typeof value})`;
  const low = min === -FLOAT32_MAX ? "" : ` >= ${min}`;
  const high = max === FLOAT32_MAX ? "" : `${low === "" ? "" : " and"} <= ${max}`;
  throw invalid(operation, `${name} expected a finite number${low}${high}, got ${got}`);
}

/** A number that is greater than 0 in float32 too. */
export function checkPositive(operation: string, name: string, value: unknown): number {
  if (typeof value === "number" && value >= FLOAT32_MIN && value <= FLOAT32_MAX) return value;
  const got = typeof value === "number" ? String(value) : `${show(value)} (${typeof value})`;
  throw invalid(operation, `${name} expected a finite number > 0 in float32, got ${got}`);
}

/** A number in [min, max], or 0, which switches off. */
export function checkZeroOr(
  operation: string,
  name: string,
  value: unknown,
  min: number = FLOAT32_MIN,
  max: number = FLOAT32_MAX,
): number {
  if (value === 0) return 0; // -0 is 0
  if (typeof value === "number" && value >= min && value <= max) return value;
  const got = typeof value === "number" ? String(value) : `${show(value)} (${typeof value})`;
  throw invalid(operation, `${name} expected 0 or a number in [${min}, ${max}], got ${got}`);
}

/** A soft cap: 0, or far enough from float32's ends that smScale / softCap and its products fit. */
export function checkSoftCap(operation: string, value: unknown): number {
  return checkZeroOr(operation, "softCap", value ?? 0, 1e-30, 1e30);
}

export function checkBoolean(operation: string, name: string, value: unknown): boolean {
  if (typeof value === "boolean") return value;
  throw invalid(operation, `${name} expected true or false, got ${show(value)}`);
}

export function checkOneOf<T extends string>(
  operation: string,
  name: string,
  value: unknown,
  allowed: readonly T[],
): T {
  if (allowed.includes(value as T)) return value as T;
  const list = allowed.map((item) => `"${item}"`).join(", ");
  throw invalid(operation, `${name} expected one of ${list}, got ${show(value)}`);
}

/**
 * A window: how many keys a query sees, itself included. 0, undefined and Infinity are no limit and
 * give 0.
 */
export function checkWindow(operation: string, name: string, value: unknown): number {
  if (value === undefined || value === Number.POSITIVE_INFINITY) return 0;
  return checkInt(operation, name, value, 0, INT32_MAX, "0 or Infinity for no limit");
}

/**
 * As `array.map`, by index alone: an iterator or a method of the user's own is never followed, and
 * `item` meets the holes too, so that it can refuse them.
 */
export function mapItems<T, R>(array: readonly T[], item: (value: T, index: number) => R): R[] {
  const items: R[] = [];
  const count = array.length;
  for (let i = 0; i < count; i++) items.push(item(array[i] as T, i));
  return items;
}

/** A shape: 1 to 8 integers, with a product that a double holds exactly. */
export function checkShape(operation: string, value: unknown): readonly number[] {
  const axes = Array.isArray(value) ? value.length : 0;
  if (!Array.isArray(value) || axes < 1 || axes > 8) {
    throw invalid(operation, `shape expected an array of 1 to 8 sizes, got ${show(value)}`);
  }
  const shape: number[] = [];
  // The whole product is checked without its zeros: strides of an empty tensor must be exact too.
  let extent = 1;
  for (let axis = 0; axis < axes; axis++) {
    const size: unknown = value[axis];
    // The name is put together for a wrong size only: this runs once for each output of a step.
    const good =
      typeof size === "number" && Number.isInteger(size) && size > 0 && size <= INT32_MAX;
    const checked = good ? size : checkInt(operation, `shape[${axis}]`, size);
    shape.push(checked);
    extent *= Math.max(checked, 1);
  }
  if (extent * 8 > Number.MAX_SAFE_INTEGER) {
    throw invalid(operation, `shape expected at most 2^50 elements, got ${showShape(shape)}`);
  }
  return Object.freeze(shape);
}

/** "[totalKv, 8, 128]": sizes, or their names. */
export function showShape(shape: readonly (number | string)[]): string {
  return `[${shape.join(", ")}]`;
}

/** The product of the sizes from axis `first` on. */
export function elementCount(shape: readonly number[], first: number = 0): number {
  let product = 1;
  for (let axis = first; axis < shape.length; axis++) product *= shape[axis]!;
  return product;
}

const typeTag = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  Symbol.toStringTag,
)!.get!;

/** "Float32Array" for one of any realm; undefined for what is no typed array. */
export function typedArrayType(value: unknown): string | undefined {
  return typeTag.call(value) as string | undefined;
}

function isDetached(buffer: ArrayBuffer): boolean {
  if (buffer.byteLength > 0) return false;
  try {
    new Uint8Array(buffer);
    return false;
  } catch {
    return true;
  }
}

/** Refuses a typed array whose memory is gone, or may change under the check. */
export function checkMemory(operation: string, name: string, view: ArrayBufferView): void {
  if (isSharedArrayBuffer(view.buffer)) {
    throw invalid(
      operation,
      `${name} lies in a SharedArrayBuffer, which another thread may change while it is read`,
      `pass a copy, ${name}.slice()`,
    );
  }
  if (isDetached(view.buffer as ArrayBuffer)) {
    throw invalid(
      operation,
      `${name} has a detached ArrayBuffer`,
      "it was transferred away: pass the array that owns the memory now",
    );
  }
}

/**
 * Memory for a copy of `length` host values. A sparse array claims more than it holds, maybe more
 * than there is.
 */
export function hostCopy<T>(
  operation: string,
  name: string,
  type: new (length: number) => T,
  length: number,
): T {
  try {
    return new type(length);
  } catch (cause) {
    const message = `${operation}: ${name} has ${length} values, more than the host can copy: pass less`;
    throw new GqaError("OUT_OF_MEMORY", message, { operation, cause });
  }
}

/** Int32 values given on the host: a checked copy, each in [min, max]. */
export function checkInts(
  operation: string,
  name: string,
  value: unknown,
  limits: { length?: number; min?: number; max?: number } = {},
): Int32Array {
  const { length, min = 0, max = INT32_MAX } = limits;
  const type = isTypedArray(value) ? typedArrayType(value) : undefined;
  if (type !== "Int32Array" && !Array.isArray(value)) {
    throw invalid(operation, `${name} expected an Int32Array or number[], got ${show(value)}`);
  }
  if (type !== undefined) checkMemory(operation, name, value as Int32Array);
  const source = value as ArrayLike<unknown>;
  const count = source.length;
  if (length !== undefined && count !== length) {
    throw invalid(operation, `${name} expected ${length} values, got ${count}`);
  }
  const copy = hostCopy(operation, name, Int32Array, count);
  for (let i = 0; i < count; i++) {
    const item = source[i];
    const good = typeof item === "number" && Number.isInteger(item) && item >= min && item <= max;
    copy[i] = good ? item : checkInt(operation, `${name}[${i}]`, item, min, max);
  }
  return copy;
}

/** float32 values given on the host: a checked, rounded copy, each finite and in [min, max]. */
export function checkFloats(
  operation: string,
  name: string,
  value: unknown,
  limits: { length?: number; min?: number; max?: number } = {},
): Float32Array<ArrayBuffer> {
  const { length, min, max } = limits;
  const type = isTypedArray(value) ? typedArrayType(value) : undefined;
  if (type !== "Float32Array" && !Array.isArray(value)) {
    throw invalid(operation, `${name} expected a Float32Array or number[], got ${show(value)}`);
  }
  if (type !== undefined) checkMemory(operation, name, value as Float32Array);
  const source = value as ArrayLike<unknown>;
  const count = source.length;
  if (length !== undefined && count !== length) {
    throw invalid(operation, `${name} expected ${length} values, got ${count}`);
  }
  const copy = hostCopy(operation, name, Float32Array, count);
  for (let i = 0; i < count; i++) {
    copy[i] = checkNumber(operation, `${name}[${i}]`, source[i], min, max);
  }
  return copy;
}
