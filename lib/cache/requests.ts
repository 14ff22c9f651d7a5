// What a user asks to plan, checked, and the answer where it does not fit.

import { checkInt, checkInts, mapItems, show } from "../check";
import { failure, invalid } from "../errors";
import type { LedgerConfig, Request, Shortage } from "./ledger";
import { Sequence } from "./sequence";

/** Checked copies of [sequence, tokens] pairs. */
export function checkRequests(operation: string, requests: unknown): Request[] {
  if (!Array.isArray(requests) || requests.length === 0) {
    const got = Array.isArray(requests) ? "[]" : show(requests);
    throw invalid(operation, `requests expected [[sequence, tokens], …], got ${got}`);
  }
  return mapItems(requests, (pair, b) => {
    if (!Array.isArray(pair) || pair.length !== 2) {
      throw invalid(operation, `requests[${b}] expected [sequence, tokens], got ${show(pair)}`);
    }
    const [sequence, tokens] = pair as unknown[]; // read once: a getter may answer otherwise next time
    return checkRequest(operation, checkSequence(operation, sequence, `requests[${b}][0]`), tokens);
  });
}

export function checkSequence(
  operation: string,
  sequence: unknown,
  name: string = "sequence",
): Sequence {
  if (sequence instanceof Sequence) return sequence;
  const what = `${name} expected a Sequence, got ${show(sequence)}`;
  throw invalid(operation, what, "make one with cache.open()");
}

export function checkRequest(operation: string, sequence: Sequence, tokens: unknown): Request {
  return { sequence, tokens: checkInt(operation, `tokens of sequence ${sequence.id}`, tokens, 1) };
}

/**
 * What `step.commit({ tokens })` tells, checked: for each request its tokens, or null. What `cache.open({ tokens })`
 * told before must be said again as it was.
 */
export function checkTold(
  operation: string,
  requests: readonly Request[],
  tokens: unknown,
): (Int32Array | null)[] {
  if (tokens === undefined) return requests.map(() => null);
  if (!Array.isArray(tokens) || tokens.length !== requests.length) {
    throw invalid(
      operation,
      `tokens expected an array of ${requests.length}, one entry a sequence, got ${show(tokens)}`,
      "null stands for a sequence whose tokens are not told",
    );
  }
  return requests.map(({ sequence, tokens: length }, b) => {
    const given: unknown = tokens[b];
    if (given === undefined || given === null) return null;
    const { text } = sequence.pages;
    if (text === null) {
      throw invalid(
        operation,
        `tokens[${b}] are of ${prefixLmText(sequence.prefixLen)}`,
        "pass null",
      );
    }
    const told = checkInts(operation, `tokens[${b}]`, given, { length });
    const start = sequence.length;
    for (let i = 0; i < told.length && start + i < text.length; i++) {
      if (told[i] === text.token(start + i)) continue;
      throw invalid(
        operation,
        `tokens[${b}][${i}] expected ${text.token(start + i)}, which cache.open told for position ${start + i}, ` +
          `got ${told[i]}`,
      );
    }
    return told;
  });
}

/** What `sequence.tell` tells, checked. */
export function checkLateTold(
  operation: string,
  sequence: Sequence,
  start: unknown,
  tokens: unknown,
): Int32Array {
  const { text } = sequence.pages;
  if (text === null) {
    throw invalid(operation, `tokens are of ${prefixLmText(sequence.prefixLen)}`, "leave it out");
  }
  const told = checkInts(operation, "tokens", tokens);
  if (checkInt(operation, "start", start) !== text.length) {
    throw invalid(
      operation,
      `start expected ${text.length}, the first untold position, got ${start}`,
    );
  }
  if (text.length + told.length <= sequence.length) return told;
  throw invalid(
    operation,
    `tokens end at ${text.length + told.length}, and ${sequence.length} are committed`,
    "tell them at or after the commit that counts them",
  );
}

/** Why no text goes with a prefixLen. */
export function prefixLmText(prefixLen: number): string {
  return (
    `a sequence with prefixLen ${prefixLen}, whose pages cannot be reused: ` +
    "its tokens see later ones, so a page depends on more than the tokens up to its end"
  );
}

export function outOfPages(operation: string, config: LedgerConfig, shortage: Shortage): Error {
  const total = config.numPages - 1;
  return failure(
    "OUT_OF_PAGES",
    operation,
    `${shortage.needed} pages needed, ${shortage.free} free and ${shortage.evictable} evictable of ${total} ` +
      `(${config.pageSize} tokens each)`,
    shortage.needed > total
      ? "plan fewer tokens at a time, or createCache({ maxTokens }) with more"
      : "close, truncate or unpin a sequence, plan fewer tokens, or createCache({ maxTokens }) with more",
  );
}
