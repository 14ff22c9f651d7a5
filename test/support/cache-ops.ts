// Random programs of the cache's verbs, and their checks.

import fc from "fast-check";
import { type Op, World } from "./cache-world";
import { programSeed } from "./random";

const index = fc.nat(1000);
const operation: fc.Arbitrary<Op> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant("open" as const),
      salt: fc.constantFrom("a", "a", "a", "b"),
      like: index,
      cut: fc.nat(3),
      more: fc.array(fc.nat(1), { maxLength: 9 }),
      priority: fc.nat(2),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant("plan" as const),
      who: fc.array(index, { minLength: 1, maxLength: 3 }),
      tokens: fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 3, maxLength: 3 }),
      ids: index,
      commit: fc.constantFrom(true, true, false),
      tell: fc.constantFrom(true, true, true, false),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("fork" as const), who: index }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("close" as const), who: index }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom("pin", "pin", "unpin", "tell", "load"),
      who: index,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("evict" as const), count: fc.nat(4) }),
  },
  {
    weight: 7,
    arbitrary: fc.record({
      kind: fc.constantFrom("offload", "restore", "restore"),
      who: index,
      ends: fc.constantFrom("now", "now", "now", "later", "undone"),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("settle" as const), well: fc.boolean() }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("truncate" as const),
      who: index,
      by: fc.nat(12),
    }),
  },
);

const settings = fc.record({
  pageSize: fc.constantFrom(1, 2, 4),
  window: fc.constantFrom(0, 0, 0, 1, 2, 3, 5, 8),
  sinkTokens: fc.nat(5),
  rollbackTokens: fc.nat(4),
  numPages: fc.integer({ min: 2, max: 40 }),
  maxSequences: fc.integer({ min: 1, max: 6 }),
  hostPages: fc.integer({ min: 0, max: 30 }),
});

/** Runs so many programs. FLASH_GQA_TEST_SEED repeats a run, whose seed is printed. */
export function checkPrograms(numRuns: number): void {
  const seed = programSeed("cache programs without a device", numRuns);
  fc.assert(
    fc.property(settings, fc.array(operation, { minLength: 20, maxLength: 80 }), (chosen, ops) => {
      const world = new World(chosen);
      for (const op of ops) {
        world.run(op);
        world.check();
      }
      world.end();
    }),
    { numRuns, seed },
  );
}
