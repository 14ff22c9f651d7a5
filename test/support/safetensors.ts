// A small reader and writer of safetensors for tests; lib/llama has its own, which these tests try to break.

import { readFileSync } from "node:fs";
import { fromBfloat16Bits, fromFloat16Bits } from "./rounding";

export interface Stored {
  dtype: string;
  shape: number[];
  data: Float64Array;
}

export type StoredFile = Map<string, Stored>;

const cache = new Map<string, StoredFile>();

export function readSafetensors(path: string): StoredFile {
  const cached = cache.get(path);
  if (cached) return cached;
  const bytes = readFileSync(path);
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + headerLength));
  const file: StoredFile = new Map();
  for (const [name, entry] of Object.entries<{
    dtype: string;
    shape: number[];
    data_offsets: [number, number];
  }>(header)) {
    if (name === "__metadata__") continue;
    const [start, end] = entry.data_offsets.map((x) => x + 8 + headerLength) as [number, number];
    const raw = new Uint8Array(bytes.subarray(start, end)).buffer;
    file.set(name, { dtype: entry.dtype, shape: entry.shape, data: decode(raw, entry.dtype) });
  }
  cache.set(path, file);
  return file;
}

function decode(raw: ArrayBuffer, dtype: string): Float64Array {
  switch (dtype) {
    case "F64":
      return new Float64Array(raw);
    case "F32":
      return Float64Array.from(new Float32Array(raw));
    case "I32":
      return Float64Array.from(new Int32Array(raw));
    case "I64":
      return Float64Array.from(new BigInt64Array(raw), Number);
    case "BF16":
      return Float64Array.from(new Uint16Array(raw), fromBfloat16Bits);
    case "F16":
      return Float64Array.from(new Uint16Array(raw), fromFloat16Bits);
    default:
      throw new Error(`safetensors dtype ${dtype}`);
  }
}

/** The bytes of a file with this header (an object, or text to write as it is) and this much data behind it. */
export function safetensorsBytes(header: unknown, data: Uint8Array | number): Buffer {
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, typeof data === "number" ? Buffer.alloc(data) : data]);
}
