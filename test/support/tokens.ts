// Made-up tokens for cache tests: what q, k and v of one sequence would be, and what its attention must give.

import { attention, type Device, type RopeTable, rope, type Tensor } from "../../lib/index";
import { Random } from "./random";
import type { FloatType } from "./rounding";

export interface Heads {
  numQHeads: number;
  numKvHeads: number;
  headDim: number;
  dtype: FloatType;
}

export interface MaskOptions {
  window?: number;
  sinkTokens?: number;
  prefixLen?: number;
  softCap?: number;
  smScale?: number;
  sinkLogits?: Tensor;
  fixedSplits?: number;
}

/** The tokens of one sequence in one layer. */
export class Tokens {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;

  constructor(
    readonly device: Device,
    readonly heads: Heads,
    readonly count: number,
    seed: number,
  ) {
    const random = new Random(seed);
    this.q = random.normal(count * heads.numQHeads * heads.headDim);
    this.k = random.normal(count * heads.numKvHeads * heads.headDim);
    this.v = random.normal(count * heads.numKvHeads * heads.headDim);
  }

  /** The first `shared` tokens of `other`, then its own: a branch. */
  branchOf(other: Tokens, shared: number): this {
    const { numQHeads, numKvHeads, headDim } = this.heads;
    this.q.set(other.q.subarray(0, shared * numQHeads * headDim));
    this.k.set(other.k.subarray(0, shared * numKvHeads * headDim));
    this.v.set(other.v.subarray(0, shared * numKvHeads * headDim));
    return this;
  }

  rows(name: "q" | "k" | "v", start: number, end: number): Tensor {
    const { numQHeads, numKvHeads, headDim, dtype } = this.heads;
    const heads = name === "q" ? numQHeads : numKvHeads;
    const data = this[name].subarray(start * heads * headDim, end * heads * headDim);
    return this.device.tensor(data, [end - start, heads, headDim], { dtype });
  }

  /** q, k and v of tokens [start, end). */
  qkv(start: number, end: number): [Tensor, Tensor, Tensor] {
    return [this.rows("q", start, end), this.rows("k", start, end), this.rows("v", start, end)];
  }

  /** Bits of o for queries [start, end) over all keys up to `end`, by dense attention(). */
  async expected(start: number, end: number, options: MaskOptions = {}, table?: RopeTable) {
    const turn = (x: Tensor, first: number) => (table ? rope(x, table, { start: first }) : x);
    const { o } = attention(
      turn(this.rows("q", start, end), start),
      turn(this.rows("k", 0, end), 0),
      this.rows("v", 0, end),
      options,
    );
    return o.readBits();
  }
}

/** Packs tensors of several sequences row after row, as a step wants them. */
export async function packed(device: Device, parts: Tensor[]): Promise<Tensor> {
  const values = await Promise.all(parts.map((part) => part.read()));
  const data = Float32Array.from(values.flatMap((v) => [...v]));
  const [, ...row] = parts[0]!.shape;
  const rows = parts.reduce((sum, part) => sum + part.shape[0]!, 0);
  return device.tensor(data, [rows, ...row], { dtype: parts[0]!.dtype });
}
