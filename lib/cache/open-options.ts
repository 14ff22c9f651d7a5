// What a sequence begins with, checked.

import { checkInt, checkInts, checkOptions, show } from "../check";
import { invalid } from "../errors";
import type { CacheLayout } from "./config";
import { PRIORITIES } from "./prefix-index";
import { prefixLmText } from "./requests";
import { KEYS_AT_ONCE, Text, type TokenIds } from "./text";

export interface OpenOptions {
  /** The first n positions see each other both ways (prefix-LM); they must be planned in one step. Default 0. */
  prefixLen?: number;
  /** The prompt: what the cache has of it, in full pages, is shared, and `length` is where computing begins. */
  tokens?: TokenIds;
  /** Only sequences opened with the same salt share pages. Default "". */
  salt?: string;
  /** 0 … 7: pages of a lower one are evicted first. Default 0. */
  priority?: number;
}

export interface Opening {
  readonly prefixLen: number;
  readonly text: Text | null;
  readonly priority: number;
}

export function checkOpening(operation: string, layout: CacheLayout, options: unknown): Opening {
  const known = ["prefixLen", "tokens", "salt", "priority"] as const;
  const given = checkOptions(operation, options as OpenOptions | undefined, known);
  const prefixLen = checkInt(operation, "prefixLen", given.prefixLen ?? 0);
  const priority = checkInt(operation, "priority", given.priority ?? 0, 0, PRIORITIES - 1);
  if (prefixLen > 0 && given.tokens !== undefined) {
    throw invalid(operation, `tokens are of ${prefixLmText(prefixLen)}`, "leave tokens out");
  }
  const text = checkText(operation, layout, given.tokens ?? [], given.salt);
  return { prefixLen, text: prefixLen > 0 ? null : text, priority };
}

export function checkText(
  operation: string,
  { pageSize, maxSeqLen }: CacheLayout,
  tokens: unknown,
  salt: unknown = "",
): Text {
  if (typeof salt !== "string") {
    throw invalid(operation, `salt expected a string, got ${show(salt)}`);
  }
  const ids = checkInts(operation, "tokens", tokens);
  if (ids.length > maxSeqLen) {
    throw invalid(
      operation,
      `tokens has ${ids.length} values, more than maxSeqLen ${maxSeqLen}`,
      "createCache({ maxSeqLen }) with more",
    );
  }
  return new Text(pageSize, salt, ids);
}

/** Refuses what would keep the event loop for long. */
export function expectShort(operation: string, text: Text | null): void {
  if (text === null || text.matchablePages <= KEYS_AT_ONCE) return;
  throw invalid(
    operation,
    `tokens fill ${text.matchablePages} pages, more than the ${KEYS_AT_ONCE} that are hashed at once`,
    `await ${operation}Async, which lets the event loop run in between`,
  );
}
