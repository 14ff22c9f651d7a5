// From token ids to text that may be shown: a token can end inside a UTF-8 character, and inside a
// stop string. What may still change is held back.

/** U+FFFD: what a decoder writes for bytes that are no character, or not one yet. */
const REPLACEMENT = "\ufffd";

/** A character has at most 4 bytes, so at most 3 of them wait for the rest. */
const MAX_WAITING = 3;

/**
 * Turns ids into text, one at a time. Each id is decoded together with those that came just before
 * it, because some tokenizers decode the first id of a list differently (SentencePiece drops its
 * space).
 */
export class StreamingDecoder {
  readonly #decode: (ids: readonly number[]) => string;
  #ids: number[];
  #newIds = 0; // at the end of #ids: their text is not all out yet
  #done: number; // characters of decode(#ids) that are out

  /** `context`: ids that the text continues, whose own text is not repeated. */
  constructor(decode: (ids: readonly number[]) => string, context: readonly number[] = []) {
    this.#decode = decode;
    this.#ids = context.slice(-8);
    const text = decode(this.#ids);
    this.#done = text.length - waiting(text);
  }

  /** The text that `id` makes certain; may be empty. */
  push(id: number): string {
    this.#ids.push(id);
    this.#newIds++;
    const text = this.#decode(this.#ids);
    const certain = text.length - waiting(text);
    const out = text.slice(this.#done, certain);
    if (certain < text.length) {
      this.#done = Math.max(this.#done, certain);
      return out;
    }
    // All is out: these ids become the next one's context, and the older ones are no longer needed.
    this.#ids = this.#ids.slice(-this.#newIds);
    this.#newIds = 0;
    this.#done = this.#decode(this.#ids).length;
    return out;
  }

  /** What was held back, when no more ids come. */
  flush(): string {
    const out = this.#decode(this.#ids).slice(this.#done);
    this.#done += out.length;
    return out;
  }
}

/** Characters at the end that more bytes may turn into something else. */
function waiting(text: string): number {
  let count = 0;
  while (count < MAX_WAITING && text[text.length - 1 - count] === REPLACEMENT) count++;
  return count;
}

/** Finds stop strings in a text that comes in pieces. */
export class StopFinder {
  readonly #stops: readonly string[];
  #held = "";
  #found = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** True once a stop string has come; the text ends before it. */
  get found(): boolean {
    return this.#found;
  }

  /** The text that can no longer be part of a stop string. */
  push(text: string): string {
    if (this.#found) return "";
    const all = this.#held + text;
    const starts = this.#stops.map((stop) => all.indexOf(stop)).filter((index) => index >= 0);
    if (starts.length > 0) {
      this.#found = true;
      this.#held = "";
      return all.slice(0, Math.min(...starts));
    }
    const keep = Math.max(0, ...this.#stops.map((stop) => partialMatch(all, stop)));
    this.#held = all.slice(all.length - keep);
    return all.slice(0, all.length - keep);
  }

  /** What was held back, when no more text comes. */
  flush(): string {
    const out = this.#held;
    this.#held = "";
    return out;
  }
}

/** Length of the longest beginning of `stop`, short of all of it, that `text` ends with. */
function partialMatch(text: string, stop: string): number {
  let length = Math.min(stop.length - 1, text.length);
  while (length > 0 && !text.endsWith(stop.slice(0, length))) length--;
  return length;
}
