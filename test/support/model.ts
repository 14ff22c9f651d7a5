// The small trained model that comes with the repository, and its held-out text.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Llama } from "../../lib/llama/index";

export const SMALL_MODEL: string = join(__dirname, "..", "..", "models", "gutenberg-7m");
const ROW = 512;

/** exp of the mean loss over all rows' tokens. */
export function perplexity(losses: Float32Array[]): number {
  const all = losses.flatMap((row) => [...row]);
  return Math.exp(all.reduce((sum, loss) => sum + loss, 0) / all.length);
}

/** The text as one stream of tokens without special ones, in rows of 512; the first `count`, or all whole ones. */
export function validRows(model: Llama, count = Infinity): Int32Array[] {
  const text = readFileSync(join(SMALL_MODEL, "valid.txt"), "utf8");
  const ids = Int32Array.from(model.tokenizer!.encode(text, { specialTokens: false }));
  const rows = Math.min(count, Math.floor(ids.length / ROW));
  return Array.from({ length: rows }, (_, i) => ids.subarray(i * ROW, (i + 1) * ROW));
}
