// Sequences between the device and the host's memory. Meanwhile the sequence is BUSY, and the event loop runs.

import { checkOptions } from "../check";
import { failure, GqaError } from "../errors";
import { checkSignal, throwIfAborted } from "../signal";
import { beginOffload, beginRestore, type Move } from "./moves";
import type { CacheParts } from "./parts";
import { outOfPages } from "./requests";
import type { Sequence } from "./sequence";

export interface MoveOptions {
  /** Aborting it before the promise settles rejects with ABORTED, and leaves everything as it was. */
  signal?: AbortSignal;
}

/** The pages that were copied. */
export async function offloadSequence(
  operation: string,
  cache: CacheParts,
  sequence: Sequence,
  options: MoveOptions | undefined,
): Promise<number> {
  const signal = readSignal(operation, options);
  const move = beginOffload(operation, cache.ledger, sequence);
  await carry(operation, cache, move, true, signal);
  return move.pages.length;
}

/** The pages that were copied: fewer than the sequence has where the cache has kept some of them. */
export async function restoreSequence(
  operation: string,
  cache: CacheParts,
  sequence: Sequence,
  options: MoveOptions | undefined,
): Promise<number> {
  const signal = readSignal(operation, options);
  const move = beginRestore(operation, cache.ledger, sequence);
  if ("needed" in move) throw outOfPages(operation, cache.layout, move);
  await carry(operation, cache, move, false, signal);
  return move.pages.length;
}

function readSignal(operation: string, options: unknown): AbortSignal | undefined {
  const given = checkOptions(operation, options as MoveOptions | undefined, ["signal"]);
  const signal = checkSignal(operation, given.signal);
  throwIfAborted(operation, signal);
  return signal;
}

async function carry(
  operation: string,
  cache: CacheParts,
  move: Move,
  toHost: boolean,
  signal: AbortSignal | undefined,
): Promise<void> {
  const proceed = (): void => {
    cache.live(operation);
    throwIfAborted(operation, signal);
  };
  try {
    await cache.host.move(operation, move, toHost, proceed);
    proceed();
  } catch (error) {
    move.undo();
    throw error instanceof GqaError && error.code === "OUT_OF_MEMORY"
      ? noHostMemory(operation, error)
      : error;
  }
  move.commit();
}

function noHostMemory(operation: string, cause: GqaError): GqaError {
  const what = cause.message.replace(/^[\w.]+: /, "");
  return failure(
    "OUT_OF_MEMORY",
    operation,
    what,
    "restore or close offloaded sequences, or createCache({ hostBytes }) with less than the host has free",
  );
}
