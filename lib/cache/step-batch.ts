// A step's batch as kernels see it: one block of int32 at a place that does not change from plan to dispose, so that a
// captured graph finds the next step's numbers where it found this one's.
//
//   | cuSeqlensQ [batch + 1] | kvLens [batch] | tableRow [batch] | prefixLens [batch] |

import type { Device } from "../device";
import { Memory } from "../memory";
import { addon, type BatchArgs, DTYPE_CODE, type Ref } from "../native";
import { placeOf } from "./cache-memory";
import type { Request } from "./ledger";

export class StepBatch {
  readonly #size: number;
  readonly #memory: Memory;
  readonly #anyPrefix: boolean;
  /** What the device holds. */
  #words: Int32Array | null = null;
  #totalQ = 0;
  #maxQLen = 0;
  #maxKvLen = 0;
  #uniform = false;

  constructor(operation: string, device: Device, requests: readonly Request[]) {
    this.#size = requests.length;
    this.#anyPrefix = requests.some(({ sequence }) => sequence.prefixLen > 0);
    this.#memory = new Memory(operation, device, (4 * this.#size + 1) * 4);
  }

  get totalQ(): number {
    return this.#totalQ;
  }

  /** Brings the device's block to these requests, whose tokens are not committed yet; sends only what changed. */
  write(requests: readonly Request[]): void {
    const size = this.#size;
    const words = new Int32Array(4 * size + 1);
    let totalQ = 0;
    let maxQLen = 0;
    let maxKvLen = 0;
    for (const [b, { sequence, tokens }] of requests.entries()) {
      totalQ += tokens;
      const kvLen = sequence.length + tokens;
      words[b + 1] = totalQ;
      words[size + 1 + b] = kvLen;
      words[2 * size + 1 + b] = sequence.pages.row;
      words[3 * size + 1 + b] = sequence.prefixLen;
      maxQLen = Math.max(maxQLen, tokens);
      maxKvLen = Math.max(maxKvLen, kvLen);
    }
    this.#send(words);
    this.#words = words;
    this.#totalQ = totalQ;
    this.#maxQLen = maxQLen;
    this.#maxKvLen = maxKvLen;
    this.#uniform = totalQ === size * maxQLen;
  }

  /** `maxKvLen` widens the grid for a graph whose sequences will have grown when it is replayed. */
  args(maxKvLen: number = this.#maxKvLen): BatchArgs {
    return {
      batchSize: this.#size,
      totalQ: this.#totalQ,
      maxQLen: this.#maxQLen,
      maxKvLen,
      uniformQLen: this.#uniform ? this.#maxQLen : 0,
      uniformKvLen: 0,
      cuSeqlensQ: this.#uniform ? null : this.#place(0),
      cuSeqlensK: null,
      kvLens: this.#place(this.#size + 1),
    };
  }

  get tableRow(): Ref {
    return this.#place(2 * this.#size + 1);
  }

  get prefixLens(): Ref | null {
    return this.#anyPrefix ? this.#place(3 * this.#size + 1) : null;
  }

  dispose(): void {
    this.#memory.release();
  }

  #place(word: number): Ref {
    return placeOf(this.#memory, word * 4);
  }

  #send(words: Int32Array): void {
    const before = this.#words;
    const { id } = this.#memory;
    if (before === null) {
      addon.upload(id, 0, DTYPE_CODE.int32, words, DTYPE_CODE.int32, words.length);
      return;
    }
    const pairs: number[] = [];
    for (const [i, word] of words.entries()) if (word !== before[i]) pairs.push(i, word);
    if (pairs.length === 0) return;
    addon.scatter(id, 0, words.length, Int32Array.from(pairs), pairs.length / 2);
  }
}
