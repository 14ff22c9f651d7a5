// How results are compared: positions of inf and nan first, then the largest difference, then RMS against a yardstick.

import { expect } from "vitest";

export function maxError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  let max = 0;
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i]!;
    const e = expected[i]!;
    if (Number.isFinite(e) && Number.isFinite(a)) max = Math.max(max, Math.abs(a - e));
    else if (!Object.is(a, e)) throw new Error(`element ${i} is ${a}, expected ${e}`);
  }
  return max;
}

export function rms(x: ArrayLike<number>): number {
  let sum = 0;
  let count = 0;
  for (let i = 0; i < x.length; i++) {
    if (!Number.isFinite(x[i]!)) continue;
    sum += x[i]! * x[i]!;
    count++;
  }
  return Math.sqrt(sum / Math.max(1, count));
}

export function rmsError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  const difference = new Float64Array(expected.length);
  for (let i = 0; i < expected.length; i++) difference[i] = actual[i]! - expected[i]!;
  return rms(difference);
}

export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  atol: number,
  what = "result",
): void {
  expect(maxError(actual, expected), `largest error of ${what}`).toBeLessThanOrEqual(atol);
}

/**
 * RMS error at most twice that of the same maths done plainly at the same precision. A result that the plain
 * computation happens to get exactly right is given a quarter of its last place.
 */
export function expectRms(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  plain: ArrayLike<number>,
): void {
  const allowed = 2 * rmsError(plain, expected) + 2 ** -25 * rms(expected);
  expect(rmsError(actual, expected), "RMS error").toBeLessThanOrEqual(allowed);
}

/** Bit for bit: also tells 0 from -0. */
export function expectSameBits(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  what = "result",
): void {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < expected.length; i++) {
    if (actual[i] !== expected[i]) {
      throw new Error(`${what}: element ${i} has bits ${actual[i]}, expected ${expected[i]}`);
    }
  }
}
