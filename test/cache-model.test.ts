// Random programs of the cache's verbs, run against a plain model that keeps every token of every sequence. The device
// is an array of page contents that is reached through its own copy of the page table, which only learns what a plan
// sends; freed pages are overwritten at once.

import fc from "fast-check";
import { expect, test } from "vitest";
import { Ledger, type LedgerConfig, type Reservation } from "../lib/cache/ledger";
import { NULL_PAGE } from "../lib/cache/page-pool";
import type { Sequence } from "../lib/cache/sequence";
import { GqaError } from "../lib/errors";

const POISON = -7;

type Op =
  | { kind: "open" }
  | { kind: "plan"; who: number[]; tokens: number[]; commit: boolean }
  | { kind: "fork" | "close"; who: number }
  | { kind: "truncate"; who: number; by: number };

const index = fc.nat(1000);
const operation: fc.Arbitrary<Op> = fc.oneof(
  { weight: 2, arbitrary: fc.constant<Op>({ kind: "open" }) },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant("plan" as const),
      who: fc.array(index, { minLength: 1, maxLength: 3 }),
      tokens: fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 3, maxLength: 3 }),
      commit: fc.boolean(),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("fork" as const), who: index }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("close" as const), who: index }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("truncate" as const),
      who: index,
      by: fc.nat(12),
    }),
  },
);

const settings = fc.record({
  pageSize: fc.constantFrom(1, 2, 4),
  window: fc.constantFrom(0, 1, 2, 3, 5, 8),
  sinkTokens: fc.nat(5),
  rollbackTokens: fc.nat(4),
  numPages: fc.integer({ min: 2, max: 40 }),
  maxSequences: fc.integer({ min: 1, max: 6 }),
});

class World {
  readonly config: LedgerConfig;
  readonly ledger: Ledger;
  readonly model = new Map<Sequence, number[]>();
  /** The longest each sequence has been at a commit: what rollbackTokens counts from. */
  readonly #longest = new Map<Sequence, number>();
  #pages: number[][];
  #table: Int32Array;
  #nextToken = 1;

  constructor(
    chosen: Pick<
      LedgerConfig,
      "pageSize" | "window" | "sinkTokens" | "rollbackTokens" | "numPages" | "maxSequences"
    >,
  ) {
    this.config = { ...chosen, maxPages: 64, maxSeqLen: 64 * chosen.pageSize, rows: 1 };
    this.#pages = Array.from({ length: chosen.numPages }, () =>
      Array<number>(chosen.pageSize).fill(POISON),
    );
    this.#table = new Int32Array(64).fill(-1);
    this.ledger = new Ledger(this.config, {
      grow: (rows) => {
        const table = new Int32Array(rows * 64).fill(-1);
        table.set(this.#table);
        this.#table = table;
      },
      write: (pairs, numPairs) => {
        for (let i = 0; i < numPairs; i++) this.#table[pairs[2 * i]!] = pairs[2 * i + 1]!;
      },
      copyRow: (from, to, count) => {
        this.#table.copyWithin(to * 64, from * 64, from * 64 + count);
      },
    });
  }

  pick(who: number): Sequence | undefined {
    const open = [...this.model.keys()];
    return open.length === 0 ? undefined : open[who % open.length];
  }

  run(op: Op): void {
    if (op.kind === "open") this.#guarded("BUSY", () => this.model.set(this.ledger.open(0), []));
    if (op.kind === "plan") this.#plan(op.who, op.tokens, op.commit);
    const sequence = "who" in op && typeof op.who === "number" ? this.pick(op.who) : undefined;
    if (sequence === undefined) return;
    const tokens = this.model.get(sequence)!;
    if (op.kind === "fork") {
      this.#guarded("BUSY", () => this.#fork(sequence));
    } else if (op.kind === "close") {
      sequence.close();
      this.model.delete(sequence);
    } else if (op.kind === "truncate") {
      const length = Math.max(0, tokens.length - op.by);
      const done = this.#guarded("INVALID_ARGUMENT", () => sequence.truncate(length));
      const back = (this.#longest.get(sequence) ?? 0) - length;
      if (back <= this.config.rollbackTokens) expect(done).toBe(true);
      if (done) tokens.length = length;
    }
  }

  #fork(parent: Sequence): void {
    const child = parent.fork();
    this.model.set(child, [...this.model.get(parent)!]);
    this.#longest.set(child, this.#longest.get(parent) ?? 0);
  }

  #plan(who: number[], counts: number[], commit: boolean): void {
    const sequences = [...new Set(who.map((w) => this.pick(w)))].filter((s) => s !== undefined);
    if (sequences.length === 0) return;
    const requests = sequences
      .map((sequence, i) => ({ sequence, tokens: counts[i]! }))
      .filter((r) => r.sequence.length + r.tokens <= this.config.maxSeqLen);
    const before = this.#snapshot();
    const result = this.ledger.reserve("cache.plan", requests);
    if (!("commit" in result)) {
      expect(result.needed).toBeGreaterThan(result.free);
      expect(this.#snapshot()).toEqual(before);
      return;
    }
    const written = this.#step(requests, result);
    if (commit) {
      result.commit();
      for (const [sequence, tokens] of written) {
        this.model.get(sequence)!.push(...tokens);
        const before = this.#longest.get(sequence) ?? 0;
        this.#longest.set(sequence, Math.max(before, sequence.length));
      }
    } else {
      result.undo();
      expect(this.#snapshot()).toEqual(before);
    }
  }

  /** What the device does in a step: table words, page copies, then the new tokens through the table. */
  #step(
    requests: readonly { sequence: Sequence; tokens: number }[],
    reservation: Reservation,
  ): Map<Sequence, number[]> {
    this.ledger.sendChanges();
    for (const { from, to } of reservation.copies) this.#pages[to] = [...this.#pages[from]!];
    const written = new Map<Sequence, number[]>();
    for (const { sequence, tokens } of requests) {
      const fresh = Array.from({ length: tokens }, () => this.#nextToken++);
      for (const [i, token] of fresh.entries()) this.#write(sequence, sequence.length + i, token);
      written.set(sequence, fresh);
    }
    return written;
  }

  check(): void {
    const { ledger, config } = this;
    const { pool } = ledger;
    const owners = new Array<number>(config.numPages).fill(0);
    for (const sequence of ledger.sequences) {
      for (const page of sequence.pages.entries) if (page !== NULL_PAGE) owners[page]!++;
    }
    owners.forEach((count, page) => {
      expect(pool.owners(page)).toBe(count);
      if (count === 0) this.#pages[page]!.fill(POISON);
    });
    expect(pool.free + pool.used).toBe(pool.total);
    expect(pool.used).toBe(owners.filter((count) => count > 0).length);
    expect(pool.shared).toBe(owners.filter((count) => count > 1).length);
    expect([...ledger.sequences]).toEqual([...this.model.keys()]);
    this.ledger.sendChanges();
    for (const [sequence, tokens] of this.model) this.#checkVisible(sequence, tokens);
  }

  /** Every key that the next token, or one after a legal truncation, would see is there. */
  #checkVisible(sequence: Sequence, tokens: number[]): void {
    expect(sequence.length).toBe(tokens.length);
    const { window, sinkTokens } = this.config;
    for (let position = 0; position <= tokens.length; position++) {
      if (position < tokens.length && !sequence.pages.canTruncate(position)) continue;
      for (let key = 0; key < position; key++) {
        if (window > 0 && key <= position - window && key >= sinkTokens) continue;
        expect(this.#read(sequence, key)).toBe(tokens[key]);
      }
    }
  }

  #slot(sequence: Sequence, key: number): [number[], number] {
    const { pageSize } = this.config;
    const page = this.#table[sequence.pages.row * 64 + Math.floor(key / pageSize)]!;
    return [this.#pages[page]!, key % pageSize];
  }

  #read(sequence: Sequence, key: number): number {
    const [page, at] = this.#slot(sequence, key);
    return page[at]!;
  }

  #write(sequence: Sequence, key: number, token: number): void {
    const [page, at] = this.#slot(sequence, key);
    page[at] = token;
  }

  #snapshot(): unknown {
    const { pool, sequences } = this.ledger;
    return {
      free: pool.free,
      shared: pool.shared,
      owners: Array.from({ length: this.config.numPages }, (_, page) => pool.owners(page)),
      sequences: [...sequences].map((s) => [s.id, s.length, s.inStep, [...s.pages.entries]]),
    };
  }

  #guarded(code: string, fn: () => unknown): boolean {
    try {
      fn();
      return true;
    } catch (error) {
      expect(error).toBeInstanceOf(GqaError);
      expect((error as GqaError).code).toBe(code);
      return false;
    }
  }
}

test("random programs keep every visible key and every count right", () => {
  fc.assert(
    fc.property(settings, fc.array(operation, { minLength: 5, maxLength: 60 }), (chosen, ops) => {
      const world = new World(chosen);
      for (const op of ops) {
        world.run(op);
        world.check();
      }
    }),
    { numRuns: 300 },
  );
});
