// What a user asks to plan, checked, and the answer where it does not fit.

import { checkInt, mapItems, show } from "../check";
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
    if (!(sequence instanceof Sequence)) {
      throw invalid(
        operation,
        `requests[${b}][0] expected a Sequence, got ${show(sequence)}`,
        "make one with cache.open()",
      );
    }
    return checkRequest(operation, sequence, tokens);
  });
}

export function checkRequest(operation: string, sequence: Sequence, tokens: unknown): Request {
  return { sequence, tokens: checkInt(operation, `tokens of sequence ${sequence.id}`, tokens, 1) };
}

export function outOfPages(operation: string, config: LedgerConfig, shortage: Shortage): Error {
  const total = config.numPages - 1;
  return failure(
    "OUT_OF_PAGES",
    operation,
    `${shortage.needed} pages needed, ${shortage.free} free of ${total} (${config.pageSize} tokens each)`,
    shortage.needed > total
      ? "plan fewer tokens at a time, or createCache({ maxTokens }) with more"
      : "close or truncate a sequence, plan fewer tokens, or createCache({ maxTokens }) with more",
  );
}
