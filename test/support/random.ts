// Seeded numbers: the same seed gives the same test everywhere.

export class Random {
  private state: number;
  constructor(seed: number) {
    this.state = seed >>> 0;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  integer(low: number, high: number): number {
    return low + Math.floor(this.uniform() * (high - low + 1));
  }

  pick<T>(values: readonly T[]): T {
    return values[this.integer(0, values.length - 1)]!;
  }

  /** Standard normal numbers that bfloat16 and float16 hold exactly, so that one answer serves all types. */
  normal(count: number, scale = 1): Float32Array {
    const out = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
      const x = scale * radius * Math.cos(2 * Math.PI * this.uniform());
      const quantum = 2 ** (Math.floor(Math.log2(Math.max(Math.abs(x), 2 ** -6))) - 7);
      out[i] = Math.round(x / quantum) * quantum;
    }
    return out;
  }

  permutation(n: number): number[] {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.integer(0, i);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }
}

/** The seed of random programs: drawn, or FLASH_GQA_TEST_SEED. It is printed, so that any run can be repeated. */
export function programSeed(what: string, numRuns: number): number {
  const given = process.env.FLASH_GQA_TEST_SEED;
  const seed = given === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(given);
  process.stdout.write(`${numRuns} ${what}: seed ${seed}\n`);
  return seed;
}
