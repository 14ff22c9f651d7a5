// The model runner: microseconds from token to token through the async iterator, with sampling and text, as an
// application gets them. Captured steps beside the same steps enqueued operation by operation.

const path = require("node:path");
const { Llama } = require("flash-gqa/llama");
const { median } = require("./measure");

const MODEL = path.join(__dirname, "..", "models", "gutenberg-7m");
const PROMPT = "In the beginning God created";

/** Microseconds per step of all sequences, the prompts' own step apart. */
async function perStep(model, batch, tokens, seed) {
  const prompts = Array.from({ length: batch }, () => PROMPT);
  // Every text as long as the others: what is measured is one batch.
  const options = {
    temperature: 0.8,
    topK: 40,
    topP: 0.95,
    seed,
    maxTokens: tokens,
    stopTokens: [],
  };
  let parts = 0;
  let start = 0;
  for await (const _ of model.generateBatch(prompts, options)) {
    if (++parts === batch) start = performance.now();
  }
  return ((performance.now() - start) * 1000) / (tokens - 1);
}

/** One sequence, and as many as a small server has; each captured, then not. */
async function* runnerRows(device, quick) {
  const tokens = quick ? 40 : 600;
  const models = [];
  for (const graphs of [true, false]) {
    models.push([graphs, await Llama.load(MODEL, { device, graphs, maxTokens: 32768 })]);
  }
  for (const batch of quick ? [1] : [1, 32]) {
    const times = models.map(() => []);
    // In turns, so that the clocks are the same for both; the first round warms up.
    for (let round = 0; round < (quick ? 3 : 6); round++) {
      for (const [i, [, model]] of models.entries()) {
        const us = await perStep(model, batch, tokens, round);
        if (round > 0) times[i].push(us);
      }
    }
    for (const [i, [captured, { dtype }]] of models.entries()) {
      const us = median(times[i]);
      const how = captured ? "captured" : "operation by operation";
      const operation = `gutenberg-7m, batch ${batch}, ${how}`;
      const params = { operation, batch, captured, dtype };
      const tokens_per_s = (batch * 1e6) / us;
      yield { suite: "runner", impl: "flash-gqa", params, us, tokens_per_s };
    }
  }
  for (const [, model] of models) model.dispose();
}

module.exports = { runnerRows };
