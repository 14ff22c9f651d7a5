// fork, truncate and rollback: branches share pages and never a token.

import { describe, expect, it } from "vitest";
import type { Step } from "../lib/index";
import { append, cacheTools, Q_WIDTH } from "./support/cache";
import { expectSameBits } from "./support/compare";
import { testDevice } from "./support/device";
import { packed } from "./support/tokens";

const device = await testDevice();
const { makeCache, tokens } = cacheTools(device);

describe("fork", () => {
  it.each([32, 37, 5])(
    "at %i tokens: each branch goes on by itself, pages are shared",
    async (at) => {
      const cache = makeCache({ pageSize: 8 });
      const trunk = tokens(80, 60);
      const seq = cache.open();
      await append(cache, seq, trunk, at);
      const before = cache.stats().pages.used;
      const branches = [1, 2, 3].map((i) => ({
        seq: seq.fork(),
        tokens: tokens(80, 60 + i).branchOf(trunk, at),
      }));
      expect(cache.stats().pages.used).toBe(before);
      const all = [{ seq, tokens: trunk }, ...branches];
      for (const more of [1, 2, 30]) {
        for (const branch of all) {
          const start = branch.seq.length;
          const bits = await append(cache, branch.seq, branch.tokens, start + more);
          expectSameBits(bits, await branch.tokens.expected(start, start + more), `${start}`);
        }
      }
      // Freed in any order; what is shared goes with the last.
      for (const i of [2, 0, 3, 1]) all[i]!.seq.close();
      expect(cache.stats().pages.used).toBe(0);
      cache.dispose();
    },
  );

  it("of a fork, in one step with its parent, copies the last page on write", async () => {
    const cache = makeCache({ pageSize: 16, fixedSplits: 32 });
    const trunk = tokens(40, 70);
    const seq = cache.open();
    await append(cache, seq, trunk, 21);
    const child = seq.fork();
    const grandchild = child.fork();
    const family = [seq, child, grandchild];
    const kinds = family.map((_, i) => tokens(40, 71 + i).branchOf(trunk, 21));
    for (let end = 22; end < 40; end++) {
      const step = cache.plan(family.map((s) => [s, 1]));
      const parts = kinds.map((t) => t.qkv(end - 1, end));
      const [q, k, v] = await Promise.all(
        [0, 1, 2].map((i) =>
          packed(
            device,
            parts.map((part) => part[i]!),
          ),
        ),
      );
      const bits = await step.attend(0, q!, k!, v!).readBits();
      step.commit();
      step.dispose();
      for (const [b, t] of kinds.entries()) {
        const want = await t.expected(end - 1, end, { fixedSplits: 32 });
        expectSameBits(
          bits.subarray(b * Q_WIDTH, (b + 1) * Q_WIDTH),
          want,
          `branch ${b} at ${end}`,
        );
      }
    }
    cache.dispose();
  });
});

describe("truncate", () => {
  it("forgets, and what follows is as if it had never been", async () => {
    const cache = makeCache({ pageSize: 8 });
    const t = tokens(90, 80);
    const seq = cache.open();
    await append(cache, seq, t, 60);
    const branch = seq.fork();
    for (const length of [59, 48, 47, 3, 0]) {
      seq.truncate(length);
      expect(seq.length).toBe(length);
      const other = tokens(90, 81 + length).branchOf(t, length);
      const fork = seq.fork();
      const bits = await append(cache, fork, other, length + 25);
      expectSameBits(bits, await other.expected(length, length + 25), `after ${length}`);
      fork.close();
    }
    expectSameBits(await append(cache, branch, t, 61), await t.expected(60, 61), "the branch");
    branch.close();
    seq.close();
    expect(cache.stats().pages.used).toBe(0);
    cache.dispose();
  });
});

describe("rollback", () => {
  it.each<[string, (step: Step) => void]>([
    ["rollback()", (step) => step.rollback()],
    ["dispose()", (step) => step.dispose()],
    ["leaving scope", (step) => step[Symbol.dispose]()],
  ])("%s leaves every sequence as it was, and the pool too", async (_, undo) => {
    const cache = makeCache({ pageSize: 8 });
    const t = tokens(60, 90);
    const junk = tokens(60, 91);
    const seq = cache.open();
    await append(cache, seq, t, 21);
    const branch = seq.fork();
    const before = cache.stats();
    const step = cache.plan([
      [seq, 20],
      [branch, 3],
    ]);
    const q = await packed(device, [junk.rows("q", 0, 20), junk.rows("q", 20, 23)]);
    const k = await packed(device, [junk.rows("k", 0, 20), junk.rows("k", 20, 23)]);
    step.attend(0, q, k, k);
    undo(step);
    step.dispose();
    expect(cache.stats().pages).toEqual(before.pages);
    expect([seq.length, branch.length]).toEqual([21, 21]);
    expectSameBits(await append(cache, seq, t, 40), await t.expected(21, 40), "seq");
    expectSameBits(await append(cache, branch, t, 22), await t.expected(21, 22), "branch");
    cache.dispose();
  });
});
