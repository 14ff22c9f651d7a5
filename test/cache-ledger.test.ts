// The cache's bookkeeping without a device: pages, forks, windows, refusals.

import { describe, expect, test } from "vitest";
import { Ledger, type LedgerConfig, type Reservation, type Shortage } from "../lib/cache/ledger";
import type { Sequence } from "../lib/cache/sequence";
import { GqaError } from "../lib/errors";

function ledger(config: Partial<LedgerConfig> = {}): Ledger {
  const all: LedgerConfig = {
    pageSize: 4,
    window: 0,
    sinkTokens: 0,
    rollbackTokens: 0,
    numPages: 17,
    maxPages: 16,
    maxSeqLen: 64,
    rows: 2,
    maxSequences: 8,
    hostPages: 16,
    ...config,
  };
  return new Ledger(all, { grow: () => {}, write: () => {}, copyRow: () => {} });
}

type Plan = readonly (readonly [Sequence, number])[];

function reserve(books: Ledger, plan: Plan): Reservation | Shortage {
  return books.reserve(
    "cache.plan",
    plan.map(([sequence, tokens]) => ({ sequence, tokens })),
  );
}

function open(books: Ledger, plan: Plan): Reservation {
  const result = reserve(books, plan);
  if (!("commit" in result)) throw new Error(`short: ${result.needed} of ${result.free}`);
  return result;
}

function append(books: Ledger, ...plan: Plan): void {
  open(books, plan).commit();
}

function refusal(fn: () => unknown): GqaError {
  try {
    fn();
  } catch (error) {
    if (error instanceof GqaError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

const entries = (sequence: Sequence) => [...sequence.pages.entries];

describe("pages of a sequence", () => {
  test("grow by whole pages, in order", () => {
    const books = ledger();
    const a = books.open("cache.open", 0);
    append(books, [a, 3]);
    expect(entries(a)).toEqual([1]);
    append(books, [a, 1]);
    expect(entries(a)).toEqual([1]);
    append(books, [a, 5]);
    expect([entries(a), a.length]).toEqual([[1, 2, 3], 9]);
  });

  test("a reservation undone leaves table, pool and length as they were", () => {
    const books = ledger();
    const a = books.open("cache.open", 0);
    append(books, [a, 6]);
    const b = a.fork();
    const before = [entries(a), entries(b), books.pool.free, books.pool.shared];
    const step = open(books, [
      [a, 7],
      [b, 1],
    ]);
    expect(step.copies).toEqual([
      { from: 2, to: 3 },
      { from: 2, to: 6 },
    ]);
    expect(books.pool.owners(2)).toBe(2); // held until commit, so that undo finds it
    step.undo();
    expect([entries(a), entries(b), books.pool.free, books.pool.shared]).toEqual(before);
    expect([a.length, b.length]).toEqual([6, 6]);
    const again = open(books, [[a, 7]]);
    expect(again.copies).toEqual([{ from: 2, to: 3 }]);
    again.commit();
  });

  test("a plan that does not fit takes nothing", () => {
    const books = ledger({ numPages: 5 });
    const [a, b] = [books.open("cache.open", 0), books.open("cache.open", 0)];
    append(books, [a, 8]);
    const short = reserve(books, [
      [a, 4],
      [b, 5],
    ]);
    expect(short).toEqual({ needed: 3, free: 2, evictable: 0 });
    expect([a.inStep, b.inStep, books.pool.free, entries(a)]).toEqual([false, false, 2, [1, 2]]);
  });

  test("the copy of a shared last page counts as needed", () => {
    const books = ledger({ numPages: 3 });
    const a = books.open("cache.open", 0);
    append(books, [a, 2]);
    const b = a.fork();
    append(books, [b, 1]);
    expect([entries(a), entries(b)]).toEqual([[1], [2]]);
    append(books, [a, 1]); // its page has one owner again: no copy
    expect(entries(a)).toEqual([1]);
    const c = a.fork();
    expect(reserve(books, [[c, 1]])).toEqual({ needed: 1, free: 0, evictable: 0 });
  });
});

describe("fork, truncate, close", () => {
  test("full pages stay shared, and are freed by the last owner in any order", () => {
    const books = ledger();
    const a = books.open("cache.open", 0);
    append(books, [a, 8]);
    const b = a.fork();
    const c = b.fork();
    append(books, [b, 1], [c, 1]);
    expect(books.pool.used).toBe(4);
    a.close();
    c.close();
    expect([books.pool.used, books.pool.shared]).toEqual([3, 0]);
    b.close();
    b.close();
    expect([books.pool.used, books.sequences.size]).toEqual([0, 0]);
  });

  test("truncating into a shared page copies it when it is written again", () => {
    const books = ledger();
    const a = books.open("cache.open", 0);
    append(books, [a, 8]);
    const b = a.fork();
    b.truncate(6);
    expect([b.length, entries(b)]).toEqual([6, [1, 2]]);
    append(books, [b, 1]);
    expect([entries(a), entries(b)]).toEqual([
      [1, 2],
      [1, 3],
    ]);
  });

  test("truncate checks its length", () => {
    const books = ledger();
    const a = books.open("cache.open", 0);
    append(books, [a, 5]);
    for (const length of [6, -1, 1.5, Number.NaN, "3" as never]) {
      const error = refusal(() => a.truncate(length));
      expect([error.code, error.message]).toEqual([
        "INVALID_ARGUMENT",
        expect.stringContaining("[0, 5]"),
      ]);
    }
    a.truncate(5);
    a.truncate(0);
    expect([a.length, books.pool.used]).toEqual([0, 0]);
  });

  test("an open step makes its sequences BUSY, by name", () => {
    const books = ledger();
    const [a, b] = [books.open("cache.open", 0), books.open("cache.open", 0)];
    append(books, [a, 1]);
    const step = open(books, [[a, 1]]);
    for (const verb of [
      () => a.fork(),
      () => a.truncate(0),
      () => a.close(),
      () =>
        reserve(books, [
          [b, 1],
          [a, 1],
        ]),
    ]) {
      const error = refusal(verb);
      expect([error.code, error.message]).toEqual(["BUSY", expect.stringContaining("sequence 0")]);
    }
    append(books, [b, 1]); // disjoint
    step.commit();
    a.fork();
  });

  test("use after close, foreign and doubled sequences are refused", () => {
    const books = ledger();
    const other = ledger();
    const [a, b, foreign] = [
      books.open("cache.open", 0),
      books.open("cache.open", 0),
      other.open("cache.open", 0),
    ];
    a.close();
    expect(refusal(() => a.fork()).code).toBe("DISPOSED");
    expect(refusal(() => a.truncate(0)).code).toBe("DISPOSED");
    expect(refusal(() => reserve(books, [[a, 1]])).code).toBe("DISPOSED");
    expect(refusal(() => reserve(books, [[foreign, 1]])).message).toContain("another cache");
    const doubled = refusal(() =>
      reserve(books, [
        [b, 1],
        [b, 1],
      ]),
    );
    expect([doubled.code, doubled.message]).toEqual([
      "INVALID_ARGUMENT",
      expect.stringContaining("twice"),
    ]);
    expect(refusal(() => reserve(books, [[b, 65]])).message).toContain("maxSeqLen 64");
  });

  test("rows grow to maxSequences and come back at close", () => {
    const grown: number[] = [];
    const books = new Ledger(
      { ...ledger({ maxSequences: 5 }).config },
      { grow: (_, rows) => grown.push(rows), write: () => {}, copyRow: () => {} },
    );
    const all = Array.from({ length: 5 }, () => books.open("cache.open", 0));
    expect(grown).toEqual([4, 5]);
    const error = refusal(() => books.open("cache.open", 0));
    expect([error.code, error.message]).toEqual(["BUSY", expect.stringContaining("maxSequences")]);
    expect(refusal(() => all[0]!.fork()).code).toBe("BUSY");
    all[2]!.close();
    expect(books.open("cache.open", 0).pages.row).toBe(2);
  });

  test("a device that cannot grow or copy leaves the books as they were", () => {
    let fails = false;
    const fail = () => {
      if (fails) throw new Error("no");
    };
    const books = new Ledger(ledger({ rows: 1 }).config, {
      grow: fail,
      write: () => {},
      copyRow: fail,
    });
    const a = books.open("cache.open", 0);
    append(books, [a, 6]);
    fails = true;
    expect(() => books.open("cache.open", 0)).toThrow("no");
    fails = false;
    books.open("cache.open", 0).close();
    fails = true;
    expect(() => a.fork()).toThrow("no");
    expect([books.sequences.size, books.pool.used, books.pool.shared]).toEqual([1, 2, 0]);
  });
});

describe("window", () => {
  test("pages wholly left of it go back at commit; the null page takes their place", () => {
    const books = ledger({ window: 6 });
    const a = books.open("cache.open", 0);
    append(books, [a, 8]); // token 8 sees 3..8
    expect(entries(a)).toEqual([1, 2]);
    append(books, [a, 1]); // token 9 sees 4..9
    expect(entries(a)).toEqual([0, 2, 3]);
    append(books, [a, 3]);
    expect(entries(a)).toEqual([0, 2, 3]);
    append(books, [a, 1]);
    expect(entries(a)).toEqual([0, 0, 3, 1]);
  });

  test("an endless conversation holds a flat number of pages", () => {
    const books = ledger({ window: 6, sinkTokens: 2, numPages: 6, maxPages: 256, maxSeqLen: 1024 });
    const a = books.open("cache.open", 0);
    for (let i = 0; i < 1000; i++) append(books, [a, 1]);
    expect(a.length).toBe(1000);
    expect(books.pool.used).toBeLessThanOrEqual(4);
    expect(entries(a)[0]).toBe(1);
  });

  test("truncate goes back as far as every visible key is held, and names the limit", () => {
    const books = ledger({ window: 6, rollbackTokens: 3 });
    const a = books.open("cache.open", 0);
    append(books, [a, 18]); // token 15 would see 10..15: pages 0 and 1 go
    expect(entries(a)).toEqual([0, 0, 3, 4, 5]);
    const error = refusal(() => a.truncate(12));
    expect([error.code, error.message]).toEqual([
      "INVALID_ARGUMENT",
      expect.stringContaining("smallest legal length is 13"),
    ]);
    a.truncate(13); // token 13 sees 8..13
    expect(entries(a)).toEqual([0, 0, 3, 4]);
    a.truncate(0);
    expect([entries(a), books.pool.used]).toEqual([[], 0]);
    append(books, [a, 5]);
    expect(entries(a)).not.toContain(0);
  });

  test("the sinks' pages stay, and truncating into them is legal", () => {
    const books = ledger({ window: 4, sinkTokens: 5 });
    const a = books.open("cache.open", 0);
    append(books, [a, 20]);
    expect(entries(a)).toEqual([1, 2, 0, 0, 5]);
    expect(refusal(() => a.truncate(9)).message).toMatch(/length is 19, or at most 8/);
    a.truncate(7);
    append(books, [a, 6]);
    expect(entries(a)).not.toContain(0);
  });

  test("a fork inherits the null pages and shares the rest", () => {
    const books = ledger({ window: 4 });
    const a = books.open("cache.open", 0);
    append(books, [a, 13]);
    const b = a.fork();
    expect(entries(b)).toEqual(entries(a));
    append(books, [a, 8], [b, 8]);
    b.close();
    a.close();
    expect(books.pool.used).toBe(0);
  });
});

describe("prefixLen", () => {
  test("must be computed in one step, and is not cut", () => {
    const books = ledger();
    const a = books.open("cache.open", 6);
    expect(refusal(() => reserve(books, [[a, 5]])).message).toContain("prefixLen");
    append(books, [a, 7]);
    expect(refusal(() => a.truncate(5)).message).toContain("prefixLen 6");
    const b = a.fork();
    expect(b.prefixLen).toBe(6);
    b.truncate(6);
    b.truncate(0);
  });
});
