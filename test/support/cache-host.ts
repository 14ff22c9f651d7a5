// The host's side of cache-world.ts: what lies in its slots, and moves that are under way. Bytes are copied when a move
// ends, as late as can be, so that a page or slot that changed hands too early shows. Free slots are overwritten.

import { expect } from "vitest";
import type { Ledger } from "../../lib/cache/ledger";
import { beginOffload, beginRestore, type Move } from "../../lib/cache/moves";
import { NULL_PAGE } from "../../lib/cache/page-pool";
import type { Sequence } from "../../lib/cache/sequence";
import { GqaError } from "../../lib/errors";

export type MoveOp = { kind: "offload" | "restore"; who: number; ends: "now" | "later" | "undone" };

interface UnderWay {
  readonly sequence: Sequence;
  readonly move: Move;
  readonly toHost: boolean;
}

export class HostWorld {
  readonly #ledger: Ledger;
  readonly #pages: number[][];
  readonly #slots: number[][];
  readonly #poison: number;
  #underWay: UnderWay[] = [];

  /** `pages`: what the device's pages hold. */
  constructor(ledger: Ledger, pages: number[][], poison: number) {
    this.#ledger = ledger;
    this.#pages = pages;
    this.#poison = poison;
    this.#slots = Array.from({ length: ledger.host.total }, () => this.#blank());
  }

  run(op: MoveOp, sequence: Sequence): void {
    const toHost = op.kind === "offload";
    const move = this.#begin(toHost, sequence);
    if (move === null) return;
    expect(() => sequence.close()).toThrow("being saved, offloaded");
    if (op.ends === "undone") {
      move.undo();
      return;
    }
    this.#underWay.push({ sequence, move, toHost });
    if (op.ends === "now") this.settle(true);
  }

  /** The move that began last ends, well or not. */
  settle(well: boolean): void {
    const done = this.#underWay.pop();
    if (done === undefined) return;
    const { sequence, move, toHost } = done;
    if (!well) {
      move.undo();
      return;
    }
    for (const [i, page] of move.pages.entries()) {
      const slot = move.slots[i]!;
      if (toHost) this.#slots[slot] = [...this.#pages[page]!];
      else this.#pages[page] = [...this.#slots[slot]!];
    }
    move.commit();
    if (!toHost) this.#checkNames(sequence);
  }

  /** Its full pages are found again, by whoever tells their tokens. */
  #checkNames({ pages, length }: Sequence): void {
    const { pageSize } = this.#ledger.config;
    for (const [i, page] of pages.entries.entries()) {
      if (page === NULL_PAGE || (i + 1) * pageSize > Math.min(length, pages.text!.length)) continue;
      expect(this.#ledger.pool.index.find(pages.text!.key(i))).toBeDefined();
    }
  }

  check(): void {
    const { host, sequences } = this.#ledger;
    const owned = [...sequences].flatMap((sequence) => [...sequence.pages.slots]);
    for (const { move, toHost } of this.#underWay) if (toHost) owned.push(...move.slots);
    expect(new Set(owned).size).toBe(owned.length);
    expect(host.used).toBe(owned.length);
    expect(host.free + host.used).toBe(host.total);
    for (const slot of this.#slots.keys()) {
      if (!owned.includes(slot)) this.#slots[slot] = this.#blank();
    }
  }

  /** What an offloaded sequence holds of its `index`th page. */
  page(sequence: Sequence, index: number): number[] {
    const { sinkTokens, pageSize } = this.#ledger.config;
    const sinkPages = Math.ceil(sinkTokens / pageSize);
    const given = Math.max(0, sequence.pages.firstLive - sinkPages);
    const slot = index < sinkPages ? index : index - given;
    return this.#slots[sequence.pages.slots[slot]!]!;
  }

  #begin(toHost: boolean, sequence: Sequence): Move | null {
    const books = this.#ledger;
    const before = this.#counts();
    try {
      const move = toHost
        ? beginOffload("cache.offload", books, sequence)
        : beginRestore("cache.restore", books, sequence);
      if ("commit" in move) return move;
      expect(move.needed).toBeGreaterThan(move.free + move.evictable);
    } catch (error) {
      expect(error).toBeInstanceOf(GqaError);
      const { code } = error as GqaError;
      if (code === "OUT_OF_MEMORY") {
        expect(sequence.pages.live.length).toBeGreaterThan(books.host.free);
      } else if (code === "BUSY") {
        expect(sequence.inStep).toBe(true);
      } else {
        expect([code, sequence.offloaded]).toEqual(["INVALID_ARGUMENT", toHost]);
      }
    }
    expect(this.#counts()).toEqual(before);
    return null;
  }

  #counts(): unknown {
    const { pool, host, sequences } = this.#ledger;
    const { free, cached, used, shared, pinned, evictions } = pool;
    const each = [...sequences].map((s) => [s.id, s.length, s.inStep, s.offloaded]);
    return { free, cached, used, shared, pinned, evictions, host: host.used, each };
  }

  #blank(): number[] {
    return Array<number>(this.#ledger.config.pageSize).fill(this.#poison);
  }
}
