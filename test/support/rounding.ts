// bfloat16 and float16 to nearest even, written here once more so that the addon's own conversion is tested against it.

import type { DType } from "../../lib/index";
import type { Precision } from "../reference";

const scratch = new DataView(new ArrayBuffer(8));

export function toBfloat16Bits(x: number): number {
  if (Number.isNaN(x)) return 0x7fc0;
  scratch.setFloat32(0, x);
  const bits = scratch.getUint32(0);
  const lower = bits & 0xffff;
  const upper = bits >>> 16;
  const up = lower > 0x8000 || (lower === 0x8000 && (upper & 1) === 1);
  return (upper + (up ? 1 : 0)) & 0xffff;
}

export function fromBfloat16Bits(bits: number): number {
  scratch.setUint32(0, (bits << 16) >>> 0);
  return scratch.getFloat32(0);
}

/** float32 first: the addon is given float32 values. */
export function toFloat16Bits(value: number): number {
  const x = Math.fround(value);
  if (Number.isNaN(x)) return 0x7e00;
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const a = Math.abs(x);
  if (a >= 65520) return sign | 0x7c00;
  if (a < 2 ** -14) return sign | nearestEven(a * 2 ** 24);
  const exponent = Math.floor(Math.log2(a));
  const e = a < 2 ** exponent ? exponent - 1 : a >= 2 ** (exponent + 1) ? exponent + 1 : exponent;
  // A mantissa that rounds up to 2048 carries into the exponent by itself.
  return sign | (((e + 14) << 10) + nearestEven(a * 2 ** (10 - e)));
}

export function fromFloat16Bits(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return exponent === 0
    ? sign * mantissa * 2 ** -24
    : sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

function nearestEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

export const ROUND: Record<"float32" | "float16" | "bfloat16", (x: number) => number> = {
  float32: Math.fround,
  float16: (x) => fromFloat16Bits(toFloat16Bits(x)),
  bfloat16: (x) => fromBfloat16Bits(toBfloat16Bits(x)),
};

export type FloatType = keyof typeof ROUND;
export const FLOAT_TYPES: readonly FloatType[] = ["float32", "bfloat16", "float16"];

/** A plain computation with float32 sums, P and the result in `dtype`: the yardstick for RMS errors. */
export function plain(dtype: FloatType): Precision {
  return { scale: Math.LOG2E, step: Math.fround, p: ROUND[dtype], out: ROUND[dtype] };
}

export function roundAll(x: ArrayLike<number>, dtype: DType): Float32Array {
  return Float32Array.from(x, ROUND[dtype as FloatType]);
}
