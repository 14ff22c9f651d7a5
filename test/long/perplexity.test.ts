// The whole held-out text: 276 rows of 512 tokens, with the window and without.

import { expect, it } from "vitest";
import { Llama } from "../../lib/llama/index";
import { testDevice } from "../support/device";
import { perplexity, SMALL_MODEL, validRows } from "../support/model";

const device = await testDevice();

it.each([
  [true, 15.98],
  [false, 32.18],
])("window %o: perplexity %d over all 276 rows", async (window, expected) => {
  const model = await Llama.load(SMALL_MODEL, { device, dtype: "float32", window });
  const rows = validRows(model);
  expect(rows.length).toBe(276);
  const losses: Float32Array[] = [];
  for (const row of rows) losses.push(await model.tokenLosses(row));
  const measured = perplexity(losses);
  expect(Math.abs(measured / expected - 1), `${measured}`).toBeLessThanOrEqual(2e-3);
  model.dispose();
});
