// Prefix reuse and eviction in the books alone: who finds what, and what goes first.

import { describe, expect, test } from "vitest";
import { Ledger, type LedgerConfig } from "../lib/cache/ledger";
import type { Sequence } from "../lib/cache/sequence";
import { Text } from "../lib/cache/text";

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

/** Token ids from a string, one a character. */
const ids = (text: string) => Int32Array.from(text, (character) => character.charCodeAt(0));
const textOf = (text: string, salt = "") => new Text(4, salt, ids(text));
const entries = (sequence: Sequence) => [...sequence.pages.entries];

/** Opens with a prompt and computes what is not there. */
function put(books: Ledger, prompt: string, options: { salt?: string; priority?: number } = {}) {
  const sequence = books.open("cache.open", 0, textOf(prompt, options.salt), options.priority ?? 0);
  append(books, sequence, prompt.slice(sequence.length));
  return sequence;
}

function append(books: Ledger, sequence: Sequence, text: string, tell = true): void {
  const step = books.reserve("cache.plan", [{ sequence, tokens: text.length }]);
  if (!("commit" in step)) throw new Error(`short: ${step.needed} of ${step.free}`);
  step.commit(tell ? [ids(text)] : []);
}

const found = (books: Ledger, prompt: string, salt = "") => books.match(textOf(prompt, salt)) * 4;

describe("prefix reuse", () => {
  test("shares all full pages of the same text, and leaves a token to compute", () => {
    const books = ledger();
    const a = put(books, "the cat sat on");
    const b = books.open("cache.open", 0, textOf("the cat sat up"));
    expect([b.length, entries(b)]).toEqual([12, entries(a).slice(0, 3)]);
    expect([books.pool.shared, books.hits, books.misses]).toEqual([3, 3, 3]);
    expect(found(books, "the cat sat ")).toBe(8); // all three pages would leave nothing to compute
    expect(found(books, "the")).toBe(0);
    expect(found(books, "")).toBe(0);
  });

  test("a page is found behind the same past only", () => {
    const books = ledger();
    put(books, "aaaabbbbcccc.");
    expect(found(books, "bbbbcccc.")).toBe(0);
    expect(found(books, "aaaaccccbbbb.")).toBe(4);
    expect(found(books, "aaaabbbbccxc.")).toBe(8);
  });

  test("salts share nothing, the same salt everything", () => {
    const books = ledger();
    const a = put(books, "system prompt", { salt: "tenant 1" });
    const b = put(books, "system prompt", { salt: "tenant 2" });
    expect(entries(b).filter((page) => entries(a).includes(page))).toEqual([]);
    expect(books.pool.shared).toBe(0);
    const c = put(books, "system prompt", { salt: "tenant 2" });
    expect(entries(c).slice(0, 3)).toEqual(entries(b).slice(0, 3));
    expect(found(books, "system prompt")).toBe(0);
  });

  test("salts differ to the last UTF-16 unit", () => {
    const books = ledger();
    put(books, "some text", { salt: "\ud800" });
    expect(found(books, "some text", "\ud801")).toBe(0);
    expect(found(books, "some text", "\ufffd")).toBe(0);
    expect(found(books, "some text", "\ud800")).toBe(8);
  });

  test("pages of closed sequences stay, counted as cached, until room is needed", () => {
    const books = ledger({ numPages: 5 });
    put(books, "aaaabbbbc").close();
    const { pool } = books;
    expect([pool.used, pool.cached, pool.free]).toEqual([0, 2, 2]);
    const again = books.open("cache.open", 0, textOf("aaaabbbbd"));
    expect([again.length, pool.used, pool.cached]).toEqual([8, 2, 0]);
    again.close();
    const other = books.open("cache.open", 0);
    append(books, other, "zzzzzzzzzzzz", false); // three pages: one is evicted, the end of the text
    expect([pool.evictions, pool.cached, found(books, "aaaabbbbc")]).toEqual([1, 1, 4]);
  });

  test("told tokens are found, untold ones and those behind them are not", () => {
    const books = ledger();
    const a = books.open("cache.open", 0, textOf("aaaa"));
    append(books, a, "aaaa", false); // told at open
    append(books, a, "bbbb");
    append(books, a, "cccc", false);
    append(books, a, "dddd");
    expect(found(books, "aaaabbbbccccdddd.")).toBe(8);
    a.truncate(8);
    append(books, a, "eeee"); // the gap is gone
    expect(found(books, "aaaabbbbeeee.")).toBe(12);
  });

  test("a page that is truncated into keeps what it says until it is written", () => {
    const books = ledger();
    const a = put(books, "aaaabbbbc");
    a.truncate(6);
    expect(found(books, "aaaabbbb.")).toBe(8);
    append(books, a, "xx");
    expect([found(books, "aaaabbbb."), found(books, "aaaabbxx.")]).toEqual([4, 8]);
  });

  test("a shared one is copied, and goes on being found", () => {
    const books = ledger();
    const a = put(books, "aaaabbbbc");
    const b = books.open("cache.open", 0, textOf("aaaabbbbd"));
    b.truncate(6);
    append(books, b, "xx");
    expect([found(books, "aaaabbbb."), found(books, "aaaabbxx.")]).toEqual([8, 8]);
    expect(entries(a)[1]).not.toBe(entries(b)[1]);
  });

  test("two sequences that compute the same keep one page to be found, and one to free", () => {
    const books = ledger();
    const [a, b] = [
      books.open("cache.open", 0, textOf("")),
      books.open("cache.open", 0, textOf("")),
    ];
    append(books, a, "aaaab");
    append(books, b, "aaaac");
    expect(found(books, "aaaa.")).toBe(4);
    a.close();
    expect([books.pool.cached, books.pool.used]).toEqual([1, 2]);
    b.close(); // its page says the same as the cached one
    expect([books.pool.cached, books.pool.used]).toEqual([1, 0]);
    const c = books.open("cache.open", 0, textOf(""));
    append(books, c, "aaaad"); // computed again: the cached twin is freed
    expect([books.pool.cached, books.pool.used]).toEqual([0, 2]);
  });

  test("forks go on with their own text", () => {
    const books = ledger();
    const a = put(books, "aaaabb");
    const b = a.fork();
    append(books, a, "xx");
    append(books, b, "yy");
    expect([found(books, "aaaabbxx."), found(books, "aaaabbyy.")]).toEqual([8, 8]);
  });

  test("a window needs only the pages that it sees", () => {
    const books = ledger({ window: 5 });
    const a = put(books, "aaaabbbbccccd");
    expect(entries(a)).toEqual([0, 0, 3, 4]);
    expect(books.evict(9)).toBe(2); // the pages of a and b
    const b = books.open("cache.open", 0, textOf("aaaabbbbccccx"));
    expect([b.length, entries(b)]).toEqual([12, [0, 0, 3]]);
    expect(found(books, "aaaabbbb.")).toBe(0); // token 8 would see tokens 4 to 8
  });

  test("sinks are seen too", () => {
    const books = ledger({ window: 5, sinkTokens: 2 });
    const a = put(books, "aaaabbbbccccd");
    a.close();
    expect(found(books, "aaaabbbbccccx")).toBe(12);
    const b = books.open("cache.open", 0, textOf("aaaabbbbccccx"));
    expect(entries(b)).toEqual([1, 0, 3]);
    b.close();
    books.evict(3);
    expect(found(books, "aaaabbbbccccx")).toBe(0);
  });

  test("hashing ahead stops where nothing more can be found", async () => {
    const text = new Text(4, "", new Int32Array(4 * 3000));
    let asked = 0;
    let turns = 0;
    const turn = setInterval(() => turns++, 0);
    await text.hashAhead(() => ++asked > 0);
    clearInterval(turn);
    expect([asked, turns > 0]).toEqual([2999, true]);
    await text.hashAhead(() => ++asked < 3005);
    expect(asked).toBe(3005);
  });
});

describe("eviction", () => {
  test("takes what was let go longest ago, the end of a text first", () => {
    const books = ledger();
    const a = put(books, "aaaabbbbccccd");
    const z = put(books, "zzzzyyyyx");
    a.close();
    z.close();
    expect(books.evict(1)).toBe(1);
    expect([found(books, "aaaabbbbcccc."), found(books, "zzzzyyyy.")]).toEqual([8, 8]);
    books.open("cache.open", 0, textOf("aaaabbbb.")).close(); // used again: now z is the oldest
    books.evict(1);
    expect([found(books, "aaaabbbbcccc."), found(books, "zzzzyyyy.")]).toEqual([8, 4]);
    expect([books.evict(100), books.pool.free, books.pool.evictions]).toEqual([3, 16, 5]);
  });

  test("the trunk of a tree goes after its branches, whatever the order of closing", () => {
    const books = ledger();
    const all = ["aaaabbbb1", "aaaacccc1", "aaaadddd1"].map((text) => put(books, text));
    for (const i of [1, 0, 2]) all[i]!.close();
    for (let left = 3; left > 0; left--) {
      expect(found(books, "aaaa.")).toBe(4);
      books.evict(1);
    }
    expect([found(books, "aaaa."), books.pool.cached]).toEqual([4, 1]);
  });

  test("low priorities go first, and a trunk has its branches' highest", () => {
    const books = ledger();
    const plain = put(books, "aaaabbbb.");
    const dear = put(books, "aaaacccc.", { priority: 3 });
    const other = put(books, "zzzzyyyy.", { priority: 1 });
    dear.close();
    other.close();
    plain.close();
    books.evict(1);
    expect([found(books, "aaaabbbb."), found(books, "zzzzyyyy.")]).toEqual([4, 8]);
    books.evict(2);
    expect([found(books, "aaaacccc."), found(books, "zzzzyyyy.")]).toEqual([8, 0]);
  });

  test("pinned pages stay, closed or not, until they are unpinned", () => {
    const books = ledger({ numPages: 6 });
    const a = put(books, "aaaabbbbc");
    a.pin();
    a.pin();
    a.close();
    const { pool } = books;
    expect([pool.pinned, pool.used, pool.cached, books.evict(9)]).toEqual([2, 2, 0, 0]);
    const b = books.open("cache.open", 0, textOf(""));
    const short = books.reserve("cache.plan", [{ sequence: b, tokens: 16 }]);
    expect(short).toEqual({ needed: 4, free: 3, evictable: 0 });
    expect(found(books, "aaaabbbb.")).toBe(8);
    a.unpin();
    a.unpin();
    expect([a.pinned, pool.pinned, pool.used, pool.cached]).toEqual([false, 0, 0, 2]);
    append(books, b, "dddddddddddddddd");
    expect([pool.cached, found(books, "aaaabbbb.")]).toEqual([1, 4]); // the end went first
  });

  test("a pinned page is never written", () => {
    const books = ledger();
    const a = put(books, "aaaabbbb");
    a.pin();
    a.truncate(6);
    const page = entries(a)[1];
    append(books, a, "xx");
    expect(entries(a)[1]).not.toBe(page);
    expect([found(books, "aaaabbbb."), found(books, "aaaabbxx.")]).toEqual([8, 8]);
    a.close();
    a.unpin();
    expect([books.pool.used, books.pool.cached]).toEqual([0, 3]);
  });

  test("a pin holds the prefix though a twin of it was the one to be found", () => {
    const books = ledger();
    const [a, b] = [
      books.open("cache.open", 0, textOf("")),
      books.open("cache.open", 0, textOf("")),
    ];
    append(books, a, "aaaab");
    append(books, b, "aaaac");
    a.close();
    books.evict(1);
    expect(found(books, "aaaa.")).toBe(0);
    b.pin();
    b.close();
    books.evict(9);
    expect(found(books, "aaaa.")).toBe(4);
  });

  test("a plan that fails evicts nothing; one undone has evicted, and nothing else", () => {
    const books = ledger({ numPages: 6 });
    put(books, "aaaabbbbc").close();
    const b = books.open("cache.open", 0);
    const short = books.reserve("cache.plan", [{ sequence: b, tokens: 24 }]);
    expect(short).toEqual({ needed: 6, free: 3, evictable: 2 });
    expect([books.pool.cached, books.pool.evictions]).toEqual([2, 0]);
    const step = books.reserve("cache.plan", [{ sequence: b, tokens: 16 }]);
    if ("commit" in step) step.undo();
    expect([books.pool.cached, books.pool.free, b.length]).toEqual([1, 4, 0]);
  });

  test("an endless run of new texts keeps the pool full and nothing besides", () => {
    const books = ledger({ numPages: 1001, maxPages: 2, maxSeqLen: 8, rows: 1, maxSequences: 1 });
    const prompt = new Int32Array(5);
    for (let i = 0; i < 20_000; i++) {
      prompt[0] = i;
      const a = books.open("cache.open", 0, new Text(4, "", prompt.slice()));
      const step = books.reserve("cache.plan", [{ sequence: a, tokens: 5 }]);
      if ("commit" in step) step.commit();
      a.close();
    }
    const { pool } = books;
    expect([pool.cached, pool.free, pool.evictions]).toEqual([999, 1, 19_001]);
  });
});
