// The tokens of a sequence, as far as they were told, and the key of each of their full pages:
//
//   key(-1) = SHA-256("flash-gqa text" + salt)     key(i) = SHA-256(key(i - 1) + tokens of page i)
//
// Two pages with one key hold keys and values of the same tokens after the same tokens, and were told with the same
// salt. The salt stands once, at the root: whoever does not have it cannot name any page behind it.

import * as crypto from "node:crypto";
import { setImmediate } from "node:timers/promises";

/** Ids that a tokenizer gives: integers of 31 bits. */
export type TokenIds = Int32Array | readonly number[];

export interface CommitOptions {
  /** The ids of each sequence's planned tokens, in the step's order; null where they stay untold. */
  tokens?: readonly (TokenIds | null)[];
}

const KEY_BYTES = 32;
/** Keys that are hashed before the event loop gets its turn. */
export const KEYS_AT_ONCE = 1024;

/** Of 32 characters, one a byte. `crypto.hash` came with Node 20.12. */
function sha256(bytes: Uint8Array): string {
  if (typeof crypto.hash === "function") return crypto.hash("sha256", bytes, "binary");
  return crypto.createHash("sha256").update(bytes).digest("binary");
}

export class Text {
  readonly #pageSize: number;
  #root: string | null = null;
  readonly #salt: string;
  #tokens: Int32Array;
  #length: number;
  #keys: string[] = [];

  /** `tokens` is the text's own from now on. */
  constructor(pageSize: number, salt: string = "", tokens: Int32Array = new Int32Array(0)) {
    this.#pageSize = pageSize;
    this.#salt = salt;
    this.#tokens = tokens;
    this.#length = tokens.length;
  }

  /** Tokens told. */
  get length(): number {
    return this.#length;
  }

  token(position: number): number {
    return this.#tokens[position]!;
  }

  append(tokens: Int32Array): void {
    const length = this.#length + tokens.length;
    if (length > this.#tokens.length) {
      const grown = new Int32Array(Math.max(64, 2 * length));
      grown.set(this.#tokens.subarray(0, this.#length));
      this.#tokens = grown;
    }
    this.#tokens.set(tokens, this.#length);
    this.#length = length;
  }

  truncate(length: number): void {
    if (length >= this.#length) return;
    this.#length = length;
    this.#keys.length = Math.min(this.#keys.length, Math.floor(length / this.#pageSize));
  }

  clone(): Text {
    const copy = new Text(this.#pageSize, this.#salt, this.#tokens.slice(0, this.#length));
    copy.#root = this.#root;
    copy.#keys = [...this.#keys];
    return copy;
  }

  /** The key of full page `index`; those before it are hashed first, each once. */
  key(index: number): string {
    for (let next = this.#keys.length; next <= index; next++) this.#keys.push(this.#hashPage(next));
    return this.#keys[index]!;
  }

  /** Pages of which every token is told and at least one token is left behind them to compute. */
  get matchablePages(): number {
    return Math.floor(Math.max(0, this.#length - 1) / this.#pageSize);
  }

  /** Hashes the matchable pages while `wanted` says of each key to go on, yielding between slices. */
  async hashAhead(wanted: (key: string) => boolean): Promise<void> {
    for (let i = 0; i < this.matchablePages; i++) {
      if (i > 0 && i % KEYS_AT_ONCE === 0) await setImmediate();
      if (!wanted(this.key(i))) return;
    }
  }

  #hashPage(index: number): string {
    const { buffer, byteOffset } = this.#tokens;
    const bytes = new Uint8Array(
      buffer,
      byteOffset + index * this.#pageSize * 4,
      this.#pageSize * 4,
    );
    const block = Buffer.allocUnsafe(KEY_BYTES + bytes.length);
    block.write(index === 0 ? this.#rootKey() : this.#keys[index - 1]!, "latin1");
    block.set(bytes, KEY_BYTES);
    return sha256(block);
  }

  #rootKey(): string {
    // UTF-16 as it stands: UTF-8 would make one of two salts that differ in a lone surrogate.
    this.#root ??= sha256(Buffer.from(`flash-gqa text${this.#salt}`, "utf16le"));
    return this.#root;
  }
}
