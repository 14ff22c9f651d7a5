// Random programs of the cache's verbs on a device: every token's attention against a plain model that keeps
// every token of every sequence.

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Sequence } from "../lib/index";
import { testDevice } from "./support/device";
import { attendAll, HEAD_DIM, meanCache } from "./support/mean-cache";

const device = await testDevice();

type Op = { verb: number; who: number; tokens: number[]; commit: boolean };

const program = fc.array(
  fc.record<Op>({
    verb: fc.nat(13),
    who: fc.nat(1000),
    tokens: fc.array(fc.integer({ min: 1, max: 20 }), { minLength: 1, maxLength: 3 }),
    commit: fc.boolean(),
  }),
  { minLength: 5, maxLength: 30 },
);

const settings = fc.record({
  window: fc.constantFrom<number | number[]>(0, 1, 7, 8, 9, 24, [5, 12], [0, 6]),
  sinkTokens: fc.constantFrom(0, 1, 9),
  rollbackTokens: fc.constantFrom(0, 10),
  maxTokens: fc.constantFrom(40, 160, 400),
});

function visibleMean(tokens: readonly number[], position: number, window: number, sinks: number) {
  let [sum, count] = [0, 0];
  for (let key = 0; key <= position; key++) {
    if (window > 0 && key <= position - window && key >= sinks) continue;
    sum += tokens[key]!;
    count++;
  }
  return sum / count;
}

describe("random programs", () => {
  it("give every token the mean of what it sees", async () => {
    await fc.assert(
      fc.asyncProperty(settings, program, async (chosen, ops) => {
        using cache = meanCache(device, { ...chosen, maxSeqLen: 512 });
        const { windows } = cache.layout;
        const model = new Map<Sequence, number[]>();
        const texts: number[][] = [[]];
        const checks: Promise<void>[] = [];
        let next = 1;

        const plan = (op: Op) => {
          const all = [...model.keys()];
          const chosenOnes = new Set(op.tokens.map((_, i) => all[(op.who + i) % all.length]!));
          const requests = [...chosenOnes].map((s, i) => [s, op.tokens[i]!] as const);
          if (requests.some(([s, n]) => s.length + n > 512)) return;
          const before = cache.stats();
          using step = cache.tryPlan(requests);
          if (step === null) return expect(cache.stats()).toEqual(before);
          const fresh = requests.map(([, n]) =>
            Array.from({ length: n }, () => (next++ * 37) % 101),
          );
          for (const [layer, o] of attendAll(device, step, fresh.flat()).entries()) {
            const want = requests.flatMap(([s], b) => {
              const tokens = [...model.get(s)!, ...fresh[b]!];
              return fresh[b]!.map((_, i) =>
                visibleMean(tokens, s.length + i, windows[layer]!, chosen.sinkTokens),
              );
            });
            checks.push(
              o.read().then((values) => {
                for (const [row, mean] of want.entries()) {
                  expect(values[row * HEAD_DIM]).toBeCloseTo(mean, 3);
                }
              }),
            );
          }
          if (!op.commit) return;
          step.commit({ tokens: fresh });
          for (const [b, [s]] of requests.entries()) {
            model.get(s)!.push(...fresh[b]!);
            texts.push([...model.get(s)!]);
          }
        };

        for (const op of ops) {
          const sequence = [...model.keys()][op.who % Math.max(1, model.size)];
          if (op.verb === 0 || sequence === undefined) model.set(cache.open(), []);
          else if (op.verb >= 12) {
            // A text that was, told up to a page's end and a token: what is found is all that is told.
            const text = texts[op.who % texts.length]!;
            const tokens = text.slice(0, text.length - (text.length % 8) + 1);
            const found = cache.match(tokens);
            const again = cache.open({ tokens: tokens.slice(0, found + 1) });
            expect(again.length).toBe(found);
            model.set(again, tokens.slice(0, found));
            again.truncate(found); // forgets the token that was told and not computed
          } else if (op.verb === 1) model.set(sequence.fork(), [...model.get(sequence)!]);
          else if (op.verb === 2) {
            const length = Math.max(0, sequence.length - op.tokens[0]!);
            if (!sequence.pages.canTruncate(length)) continue;
            sequence.truncate(length);
            model.get(sequence)!.length = length;
          } else if (op.verb === 3) {
            sequence.close();
            model.delete(sequence);
          } else plan(op);
        }
        await Promise.all(checks);
        for (const sequence of model.keys()) sequence.close();
        expect(cache.stats()).toMatchObject({
          tokens: 0,
          sequences: 0,
          pages: { used: 0, shared: 0, pinned: 0 },
        });
        cache.evict();
        expect(cache.stats().pages).toMatchObject({ cached: 0, free: cache.stats().pages.total });
      }),
      { numRuns: 60 },
    );
  });
});
