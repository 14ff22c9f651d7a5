// Measuring a model instead of writing with it: all logits, hidden states, and the loss of each
// token of a given text. Rows go through the language-model head in blocks, so that memory stays
// O(block x vocabulary).

import type { Tensor } from "../tensor";
import type { Engine } from "./generate";

/** Rows of logits that come to the host at once. */
const LOGIT_ROWS = 256;

export interface Evaluation {
  /** [tokens, vocab]: row i predicts token i + 1. */
  readonly logits: Float32Array;
  /**
   * [tokens, hidden] each: the embedding, then every layer's output, the last one after the final
   * norm.
   */
  readonly hiddenStates: readonly Float32Array[];
}

/** One pass over `tokens` with every row's logits. */
export async function evaluate(engine: Engine, tokens: Int32Array): Promise<Evaluation> {
  const { vocabSize } = engine.transformer.config;
  const logits = new Float32Array(tokens.length * vocabSize);
  const hiddenStates: Float32Array[] = [];
  await onePass(engine, tokens, true, async (states) => {
    for (const state of states) hiddenStates.push((await state.read()) as Float32Array);
    await eachLogitBlock(engine, states.at(-1)!, (block, start) => {
      logits.set(block, start * vocabSize);
    });
  });
  return { logits, hiddenStates };
}

/** -log p(token i + 1 | tokens 0..i) in nats, for i in [0, tokens - 1). */
export async function tokenLosses(engine: Engine, tokens: Int32Array): Promise<Float32Array> {
  const { vocabSize } = engine.transformer.config;
  const losses = new Float32Array(tokens.length - 1);
  await onePass(engine, tokens, false, async (states) => {
    await eachLogitBlock(engine, states.at(-1)!, (block, start) => {
      const end = Math.min(start + block.length / vocabSize, losses.length);
      for (let i = start; i < end; i++) {
        const row = block.subarray((i - start) * vocabSize, (i - start + 1) * vocabSize);
        losses[i] = logSumExp(row) - row[tokens[i + 1]!]!;
      }
    });
  });
  return losses;
}

/**
 * Runs `tokens` as one sequence in one step; `use` gets the hidden states (all, or the last alone),
 * normed last.
 */
async function onePass(
  engine: Engine,
  tokens: Int32Array,
  allStates: boolean,
  use: (states: readonly Tensor[]) => Promise<void>,
): Promise<void> {
  const { cache, device, transformer } = engine;
  const seq = cache.open();
  const states: Tensor[] = [];
  try {
    const step = cache.plan([[seq, tokens.length]]);
    try {
      states.push(
        ...device.tidy(() => {
          const kept: Tensor[] = [];
          const hidden = transformer.forward(step, tokens, (state) => {
            if (allStates) kept.push(state);
            return allStates;
          });
          return [...kept, transformer.finalNorm(hidden)];
        }),
      );
      step.commit();
    } finally {
      step.dispose();
    }
    await use(states);
  } finally {
    for (const state of states) state.dispose();
    seq.close();
  }
}

/** Calls `use` with logits [rows, vocab] and the row they begin at. */
async function eachLogitBlock(
  { device, transformer }: Engine,
  normed: Tensor,
  use: (block: Float32Array, start: number) => void,
): Promise<void> {
  const rows = normed.shape[0]!;
  for (let start = 0; start < rows; start += LOGIT_ROWS) {
    const end = Math.min(start + LOGIT_ROWS, rows);
    const logits = device.tidy(() => transformer.logits(normed.slice(0, start, end)));
    try {
      use((await logits.read()) as Float32Array, start);
    } finally {
      logits.dispose();
    }
  }
}

function logSumExp(row: Float32Array): number {
  const max = row.reduce((a, b) => Math.max(a, b));
  let sum = 0;
  for (const value of row) sum += Math.exp(value - max);
  return max + Math.log(sum);
}
