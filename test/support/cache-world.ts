// What stands behind the random programs of the cache's verbs: the ledger, a plain model that keeps every token of
// every sequence, and a device that is an array of page contents, reached through its own copy of the page table, which
// only learns what a plan sends. Freed pages are overwritten at once.

import { expect } from "vitest";
import { Ledger, type LedgerConfig, type Reservation } from "../../lib/cache/ledger";
import { NULL_PAGE } from "../../lib/cache/page-pool";
import type { Sequence } from "../../lib/cache/sequence";
import { Text } from "../../lib/cache/text";
import { GqaError } from "../../lib/errors";
import { HostWorld, type MoveOp } from "./cache-host";

const POISON = -7;

export type Op =
  | { kind: "open"; salt: string; like: number; cut: number; more: number[]; priority: number }
  | { kind: "plan"; who: number[]; tokens: number[]; ids: number; commit: boolean; tell: boolean }
  | { kind: "fork" | "close" | "pin" | "unpin" | "tell" | "load"; who: number }
  | { kind: "evict"; count: number }
  | MoveOp
  | { kind: "settle"; well: boolean }
  | { kind: "truncate"; who: number; by: number };

/** What one sequence must hold: its tokens, and those that it was opened with and has not got to. */
interface Model {
  readonly salt: string;
  tokens: number[];
  prompt: number[];
}

export class World {
  readonly config: LedgerConfig;
  readonly ledger: Ledger;
  readonly model = new Map<Sequence, Model>();
  /** Pages pinned for each sequence, closed or not, as the text that they hold. */
  readonly pinned = new Map<Sequence, { salt: string; tokens: number[] }>();
  /** Every text that ever was, so that prompts repeat it. */
  readonly #texts: number[][] = [[]];
  /** A key and value is known by its whole past: the same number only after the same tokens and salt. */
  readonly #contents = new Map<string, number>();
  /** The longest each sequence has been at a commit: what rollbackTokens counts from. */
  readonly #longest = new Map<Sequence, number>();
  readonly #pages: number[][];
  readonly #host: HostWorld;
  #table: Int32Array;

  constructor(
    chosen: Pick<
      LedgerConfig,
      | "pageSize"
      | "window"
      | "sinkTokens"
      | "rollbackTokens"
      | "numPages"
      | "maxSequences"
      | "hostPages"
    >,
  ) {
    this.config = { ...chosen, maxPages: 64, maxSeqLen: 64 * chosen.pageSize, rows: 1 };
    this.#pages = Array.from({ length: chosen.numPages }, () =>
      Array<number>(chosen.pageSize).fill(POISON),
    );
    this.#table = new Int32Array(64).fill(-1);
    this.ledger = new Ledger(this.config, {
      grow: (_, rows) => {
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
    this.#host = new HostWorld(this.ledger, this.#pages, POISON);
  }

  pick(who: number): Sequence | undefined {
    const open = [...this.model.keys()];
    return open.length === 0 ? undefined : open[who % open.length];
  }

  run(op: Op): void {
    if (op.kind === "open") this.#guarded("BUSY", () => this.#open(op));
    if (op.kind === "plan") this.#plan(op);
    if (op.kind === "evict") {
      const { cached } = this.ledger.pool;
      expect(this.ledger.evict(op.count)).toBe(Math.min(op.count, cached));
    }
    if (op.kind === "settle") this.#host.settle(op.well);
    const sequence = "who" in op && typeof op.who === "number" ? this.pick(op.who) : undefined;
    if (sequence === undefined) return;
    if (op.kind === "offload" || op.kind === "restore") this.#host.run(op, sequence);
    else this.#runOn(sequence, op);
  }

  #runOn(sequence: Sequence, op: Op): void {
    // Of a sequence that is away or on its way only these verbs take no notice.
    const takes = ["close", "tell", "unpin"].includes(op.kind) && !sequence.inStep;
    if ((sequence.offloaded || sequence.inStep) && !takes) {
      this.#refused(op.kind, sequence);
      return;
    }
    const { salt, tokens } = this.model.get(sequence)!;
    if (op.kind === "pin") {
      sequence.pin();
      const told = Math.min(sequence.length, sequence.pages.text!.length);
      const full = told - (told % this.config.pageSize);
      this.pinned.set(sequence, { salt, tokens: tokens.slice(0, full) });
    } else if (op.kind === "unpin") {
      for (const some of [...this.pinned.keys()].slice(0, 2)) {
        some.unpin();
        this.pinned.delete(some);
      }
    } else if (op.kind === "tell") {
      if (sequence.told < tokens.length) sequence.tell(sequence.told, tokens.slice(sequence.told));
    } else if (op.kind === "load") {
      this.#guarded("BUSY", () => this.#load(sequence));
    } else if (op.kind === "fork") {
      this.#guarded("BUSY", () => this.#fork(sequence));
    } else if (op.kind === "close") {
      sequence.close();
      this.model.delete(sequence);
    } else if (op.kind === "truncate") {
      const length = Math.max(0, tokens.length - op.by);
      const done = this.#guarded("INVALID_ARGUMENT", () => sequence.truncate(length));
      const back = (this.#longest.get(sequence) ?? 0) - length;
      if (back <= this.config.rollbackTokens) expect(done).toBe(true);
      if (!done) return;
      tokens.length = length;
      this.model.get(sequence)!.prompt.length = Math.min(
        length,
        this.model.get(sequence)!.prompt.length,
      );
    }
  }

  #refused(kind: Op["kind"], sequence: Sequence): void {
    const verbs: Partial<Record<Op["kind"], () => unknown>> = {
      fork: () => sequence.fork(),
      truncate: () => sequence.truncate(0),
      load: () => this.ledger.hold("cache.save", sequence),
      close: () => sequence.close(),
    };
    const verb = verbs[kind];
    if (verb === undefined) return;
    const before = this.#snapshot();
    expect(this.#guarded(sequence.inStep ? "BUSY" : "INVALID_ARGUMENT", verb)).toBe(false);
    expect(this.#snapshot()).toEqual(before);
  }

  /** What save and load come to: the same pages under other numbers. */
  #load(from: Sequence): void {
    const { length, prefixLen, pages } = from;
    const { firstLive } = pages;
    const { salt, tokens } = this.model.get(from)!;
    const told = Math.min(from.told, length);
    const extent = { length, prefixLen, firstLive };
    expect(this.ledger.couldHold(extent, told)).toBe(true);
    const before = this.#snapshot();
    const text = new Text(this.config.pageSize, salt);
    const loaded = this.ledger.load("cache.load", extent, text, 0);
    if (!("pages" in loaded)) {
      expect(loaded.needed).toBeGreaterThan(loaded.free + loaded.evictable);
      expect(this.#snapshot()).toEqual(before);
      return;
    }
    const [source, target] = [[...pages.entries], [...loaded.pages.entries]];
    expect(target.map((page) => page === NULL_PAGE)).toEqual(source.map((p) => p === NULL_PAGE));
    source.forEach((page, i) => {
      if (page !== NULL_PAGE) this.#pages[target[i]!] = [...this.#pages[page]!];
    });
    loaded.inStep = false;
    loaded.tell(0, tokens.slice(0, told));
    this.model.set(loaded, { salt, tokens: [...tokens], prompt: [] });
    this.#longest.set(loaded, this.#longest.get(from) ?? 0);
  }

  #open(op: Extract<Op, { kind: "open" }>): void {
    const recent = this.#texts.slice(-6);
    const like = recent[op.like % recent.length]!;
    const prompt = [...like.slice(0, Math.max(0, like.length - op.cut)), ...op.more];
    prompt.length = Math.min(prompt.length, this.config.maxSeqLen);
    const text = new Text(this.config.pageSize, op.salt, Int32Array.from(prompt));
    const found = this.#findable(op.salt, prompt);
    expect(this.ledger.match(text) * this.config.pageSize).toBe(found);
    const sequence = this.ledger.open("cache.open", 0, text, op.priority);
    expect(sequence.length).toBe(found);
    if (prompt.length > 0) expect(sequence.length).toBeLessThan(prompt.length);
    this.model.set(sequence, { salt: op.salt, tokens: prompt.slice(0, found), prompt });
    this.#longest.set(sequence, found);
  }

  /** The longest beginning of a prompt all of whose visible keys lie in pages that have a key. */
  #findable(salt: string, prompt: readonly number[]): number {
    const { pageSize, window, sinkTokens, rollbackTokens, numPages } = this.config;
    const pages = new Set<string>();
    for (let page = 1; page < numPages; page++) {
      if (this.ledger.pool.index.has(page)) pages.add(this.#pages[page]!.join());
    }
    const there = Array.from({ length: Math.floor(prompt.length / pageSize) }, (_, i) => {
      const keys = Array.from({ length: pageSize }, (_, j) => i * pageSize + j);
      return pages.has(keys.map((key) => this.#content(salt, prompt, key)).join());
    });
    let length = prompt.length === 0 ? 0 : prompt.length - 1;
    for (length -= length % pageSize; length > 0; length -= pageSize) {
      const first = window === 0 ? 0 : length - rollbackTokens - window + 1;
      const seen = Array.from({ length }, (_, key) => key).filter(
        (key) => key >= first || Math.floor(key / pageSize) * pageSize < sinkTokens,
      );
      if (seen.every((key) => there[Math.floor(key / pageSize)])) break;
    }
    return length;
  }

  #content(salt: string, tokens: readonly number[], position: number): number {
    const past = `${salt}:${tokens.slice(0, position + 1)}`;
    if (!this.#contents.has(past)) this.#contents.set(past, this.#contents.size + 1);
    return this.#contents.get(past)!;
  }

  #fork(parent: Sequence): void {
    const child = parent.fork();
    this.model.set(child, structuredClone(this.model.get(parent)!));
    this.#longest.set(child, this.#longest.get(parent) ?? 0);
  }

  #plan(op: Extract<Op, { kind: "plan" }>): void {
    const sequences = [...new Set(op.who.map((w) => this.pick(w)))].filter((s) => s !== undefined);
    if (sequences.length === 0) return;
    const here = sequences.filter((sequence) => !sequence.offloaded && !sequence.inStep);
    for (const sequence of sequences) {
      if (here.includes(sequence)) continue;
      const code = sequence.inStep ? "BUSY" : "INVALID_ARGUMENT";
      const plan = () => this.ledger.reserve("cache.plan", [{ sequence, tokens: 1 }]);
      expect(this.#guarded(code, plan)).toBe(false);
    }
    const requests = here
      .map((sequence, i) => ({ sequence, tokens: op.tokens[i]! }))
      .filter((r) => r.sequence.length + r.tokens <= this.config.maxSeqLen);
    const before = this.#snapshot();
    const result = this.ledger.reserve("cache.plan", requests);
    if (!("commit" in result)) {
      expect(result.needed).toBeGreaterThan(result.free + result.evictable);
      expect(this.#snapshot()).toEqual(before);
      return;
    }
    const written = this.#step(requests, result, op.ids);
    if (op.commit) {
      const told = [...written.values()].map((tokens) => Int32Array.from(tokens));
      result.commit(op.tell ? told : []);
      for (const [sequence, tokens] of written) {
        this.model.get(sequence)!.tokens.push(...tokens);
        this.#texts.push([...this.model.get(sequence)!.tokens]);
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
    ids: number,
  ): Map<Sequence, number[]> {
    this.ledger.sendChanges();
    for (const { from, to } of reservation.copies) this.#pages[to] = [...this.#pages[from]!];
    const written = new Map<Sequence, number[]>();
    for (const { sequence, tokens } of requests) {
      const { salt, tokens: past, prompt } = this.model.get(sequence)!;
      const start = past.length;
      const fresh = Array.from({ length: tokens }, (_, i) => prompt[start + i] ?? (ids >> i) & 1);
      const all = [...past, ...fresh];
      for (let i = start; i < all.length; i++) {
        this.#write(sequence, i, this.#content(salt, all, i));
      }
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
      if (this.#isFree(page)) this.#pages[page]!.fill(POISON);
    });
    const pages = Array.from({ length: config.numPages - 1 }, (_, i) => i + 1);
    const count = (fits: (page: number) => boolean) => pages.filter(fits).length;
    expect(pool.free + pool.used + pool.cached).toBe(pool.total);
    expect(pool.free).toBe(count((page) => this.#isFree(page)));
    expect(pool.used).toBe(count((page) => owners[page]! + pool.pins(page) > 0));
    expect(pool.pinned).toBe(count((page) => pool.pins(page) > 0));
    expect(pool.shared).toBe(owners.filter((count) => count > 1).length);
    const open = [...ledger.sequences];
    expect(open).toEqual([...this.model.keys()]);
    expect(ledger.tally).toEqual({
      tokens: open.reduce((sum, { length }) => sum + length, 0),
      offloaded: open.filter(({ offloaded }) => offloaded).length,
    });
    this.#host.check();
    this.ledger.sendChanges();
    for (const [sequence, { salt, tokens }] of this.model) {
      this.#checkVisible(sequence, salt, tokens);
    }
    if (config.window > 0) return;
    for (const { salt, tokens } of this.pinned.values()) {
      const text = new Text(config.pageSize, salt, Int32Array.from([...tokens, 0]));
      expect(this.ledger.match(text) * config.pageSize).toBe(tokens.length);
    }
  }

  #isFree(page: number): boolean {
    const { pool } = this.ledger;
    return pool.owners(page) + pool.pins(page) === 0 && !pool.index.has(page);
  }

  /** Everything ends, in any order, and nothing is left behind. */
  end(): void {
    while ([...this.model.keys()].some(({ inStep }) => inStep)) this.#host.settle(true);
    for (const sequence of this.model.keys()) sequence.close();
    for (const sequence of this.pinned.keys()) sequence.unpin();
    const { pool } = this.ledger;
    expect([pool.used, pool.shared, pool.pinned, this.ledger.host.used]).toEqual([0, 0, 0, 0]);
    this.ledger.evict(pool.total);
    expect([pool.free, pool.cached]).toEqual([pool.total, 0]);
    const all = new Set(Array.from({ length: pool.total }, () => pool.allocate()));
    expect(all.size).toBe(pool.total);
  }

  /** Every key that the next token, or one after a legal truncation, would see is there. */
  #checkVisible(sequence: Sequence, salt: string, tokens: number[]): void {
    expect(sequence.length).toBe(tokens.length);
    const { window, sinkTokens } = this.config;
    const want = tokens.map((_, key) => this.#content(salt, tokens, key));
    for (let position = 0; position <= tokens.length; position++) {
      if (position < tokens.length && !sequence.pages.canTruncate(position)) continue;
      for (let key = 0; key < position; key++) {
        if (window > 0 && key <= position - window && key >= sinkTokens) continue;
        expect(this.#read(sequence, key)).toBe(want[key]);
      }
    }
  }

  #slot(sequence: Sequence, key: number): [number[], number] {
    const { pageSize } = this.config;
    if (sequence.offloaded) {
      return [this.#host.page(sequence, Math.floor(key / pageSize)), key % pageSize];
    }
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
      room: pool.free + pool.cached,
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
