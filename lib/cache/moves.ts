// The books of a sequence on its way to the host, or back. Pure: the bytes go between begin and commit.

import { failure, invalid } from "../errors";
import { busy, expectIdle, expectOpen } from "./guards";
import type { Ledger, Shortage } from "./ledger";
import type { Sequence } from "./sequence";
import type { PageMoves } from "./sequence-pages";

/** Pages to copy, while the sequence is BUSY: then either committed or undone, once. */
export interface Move extends PageMoves {
  commit(): void;
  undo(): void;
}

/** Sets aside a slot of the host for each page, or throws OUT_OF_MEMORY and nothing has changed. */
export function beginOffload(operation: string, ledger: Ledger, sequence: Sequence): Move {
  expectIdle(operation, ledger.sequences, sequence);
  const { host } = ledger;
  const pages = sequence.pages.live;
  if (pages.length > host.free) {
    throw failure(
      "OUT_OF_MEMORY",
      operation,
      `sequence ${sequence.id} has ${pages.length} pages, and the host has room for ${host.free} of ${host.total}`,
      host.total === 0
        ? "createCache({ hostBytes }) sets the room"
        : "close or restore an offloaded sequence, or createCache({ hostBytes }) with more",
    );
  }
  const slots = host.take(pages.length);
  sequence.inStep = true;
  return {
    pages,
    slots,
    commit() {
      sequence.pages.leave(slots);
      sequence.inStep = false;
    },
    undo() {
      host.give(slots);
      sequence.inStep = false;
    },
  };
}

/** Takes a page for each slot whose text the cache has not kept, or says how many are short and nothing has changed. */
export function beginRestore(
  operation: string,
  ledger: Ledger,
  sequence: Sequence,
): Move | Shortage {
  expectOpen(operation, ledger.sequences, sequence);
  if (sequence.inStep) throw busy(operation, sequence);
  if (!sequence.offloaded) {
    throw invalid(
      operation,
      `sequence ${sequence.id} is not offloaded`,
      "ask sequence.offloaded first",
    );
  }
  const { evictions } = ledger.pool;
  const moves = sequence.pages.comeBack();
  if ("needed" in moves) return moves;
  ledger.noteEvictions(evictions);
  sequence.inStep = true;
  return {
    ...moves,
    commit() {
      ledger.host.give(sequence.pages.arrive());
      sequence.inStep = false;
    },
    undo() {
      sequence.pages.stayAway();
      sequence.inStep = false;
    },
  };
}
