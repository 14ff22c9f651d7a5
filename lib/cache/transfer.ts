// Sequences between a cache and bytes on the host. Meanwhile the sequence is BUSY, and the event loop runs.

import { createHash } from "node:crypto";
import type { Writable } from "node:stream";
import { setImmediate } from "node:timers/promises";
import { checkOptions } from "../check";
import { invalid } from "../errors";
import { checkSignal, throwIfAborted } from "../signal";
import type { CacheLayout } from "./config";
import type { CacheParts } from "./parts";
import { outOfPages } from "./requests";
import {
  BLOCK,
  BodySum,
  corrupt,
  type Fingerprint,
  HEADER_AT,
  headerBytes,
  MOST_NAME_BYTES,
  readHead,
  type SavedHeader,
  SUM_BYTES,
  tokenBytes,
  writeHead,
  wrongSum,
} from "./saved";
import { ByteReader, checkFile, checkWritable, toBuffer, toFile, toStream } from "./saved-places";
import type { Sequence } from "./sequence";
import { Text } from "./text";

export interface SaveOptions {
  /** Names the weights. A sequence saved under one name is not loaded under another. Default "". */
  model?: string;
  /** Aborting it rejects with ABORTED, and leaves everything as it was. */
  signal?: AbortSignal;
}

export interface SaveToFile extends SaveOptions {
  /** A path or a file: URL. The file is there as a whole or not at all. */
  file: string | URL;
}

export interface SaveToStream extends SaveOptions {
  /** Ended behind the last byte; destroyed where anything fails. */
  stream: Writable;
}

export interface LoadOptions extends SaveOptions {
  /** As in `open`: under which the sequence's pages are found by others. It is not saved. */
  salt?: string;
  priority?: number;
}

/** Where to, checked. */
export interface Destination {
  readonly file: string | undefined;
  readonly stream: Writable | undefined;
}

export function checkModel(operation: string, model: unknown = ""): string {
  if (typeof model !== "string") throw invalid(operation, "model expected a string");
  const bytes = Buffer.byteLength(JSON.stringify(model));
  if (bytes <= MOST_NAME_BYTES) return model;
  throw invalid(
    operation,
    `model expected at most ${MOST_NAME_BYTES} bytes, got ${bytes}`,
    "name the weights by a hash",
  );
}

export function checkSaving(
  operation: string,
  options: SaveOptions | undefined,
): { model: string; signal: AbortSignal | undefined; destination: Destination } {
  const known = ["model", "signal", "file", "stream"] as const;
  const given = checkOptions(
    operation,
    options as Partial<SaveToFile & SaveToStream> | undefined,
    known,
  );
  const { file, stream } = given;
  if (file !== undefined && stream !== undefined) {
    throw invalid(operation, "options have a file and a stream", "pass one of them");
  }
  return {
    model: checkModel(operation, given.model),
    signal: checkSignal(operation, given.signal),
    destination: {
      file: file === undefined ? undefined : checkFile(operation, "file", file),
      stream: stream === undefined ? undefined : checkWritable(operation, stream),
    },
  };
}

/** What the bits of keys and values depend on, as far as a cache knows. */
function fingerprint({ layout, rope }: CacheParts, model: string): Fingerprint {
  const { numLayers, numKvHeads, headDim, dtype, pageSize, windows, sinkTokens } = layout;
  return {
    model,
    numLayers,
    numKvHeads,
    headDim,
    dtype,
    pageSize,
    windows: windows.join(),
    sinkTokens,
    smScale: layout.smScale,
    softCap: layout.softCap,
    rope: rope === null ? "none" : createHash("sha256").update(rope.identity).digest("hex"),
  };
}

/** The bytes, or how many went where they were sent. */
export async function saveSequence(
  operation: string,
  cache: CacheParts,
  sequence: Sequence,
  model: string,
  { file, stream }: Destination,
  signal: AbortSignal | undefined,
): Promise<Buffer | number> {
  const { layout, ledger } = cache;
  ledger.hold(operation, sequence);
  try {
    const { pages, length, prefixLen } = sequence;
    const told = Math.min(length, sequence.told);
    const header: SavedHeader = {
      fingerprint: fingerprint(cache, model),
      length,
      prefixLen,
      firstLive: pages.firstLive,
      tokens: told,
      pageBytes: pages.live.length * layout.numLayers * layout.pageBytes,
    };
    const head = writeHead(header);
    const total = head.length + tokenBytes(told) + header.pageBytes + SUM_BYTES;
    const bytes = savedBytes(operation, cache, sequence, head, header, signal);
    if (file !== undefined) await toFile(operation, bytes, file);
    else if (stream !== undefined) await toStream(operation, bytes, stream, signal);
    else return await toBuffer(operation, bytes, total);
    return total;
  } finally {
    sequence.inStep = false;
  }
}

async function* savedBytes(
  operation: string,
  cache: CacheParts,
  { pages }: Sequence,
  head: Buffer,
  header: SavedHeader,
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer, void, undefined> {
  yield head;
  const tokens = Buffer.alloc(tokenBytes(header.tokens));
  for (let i = 0; i < header.tokens; i++) tokens.writeInt32LE(pages.text!.token(i), 4 * i);
  const body = new Body(cache.layout, pages.live, tokens.length);
  const sum = new BodySum();
  const read = (at: number): Promise<Buffer> => {
    cache.live(operation);
    throwIfAborted(operation, signal);
    const block = readBlock(cache, body, tokens, header.length, at);
    block.catch(() => {}); // asked for when its turn comes, or never where the place has failed
    return block;
  };
  // The device is at the next block while this one is hashed and written.
  let ahead = body.bytes > 0 ? read(0) : null;
  for (let at = 0; ahead !== null; at += BLOCK) {
    const block: Buffer = await ahead;
    ahead = at + BLOCK < body.bytes ? read(at + BLOCK) : null;
    await sum.add(block);
    yield block;
  }
  cache.live(operation);
  throwIfAborted(operation, signal);
  yield await sum.digest();
}

async function readBlock(
  cache: CacheParts,
  body: Body,
  tokens: Buffer,
  length: number,
  at: number,
): Promise<Buffer> {
  const block = Buffer.allocUnsafe(Math.min(BLOCK, body.bytes - at));
  block.set(tokens.subarray(at, at + block.length));
  const reads = Array.from(body.extents(at, at + block.length), async (extent) => {
    block.set(new Uint8Array(await cache.memory.readPages(extent)), extent.at - at);
  });
  await Promise.all(reads);
  body.blankUnwritten(block, at, length);
  return block;
}

export async function loadSequence(
  operation: string,
  cache: CacheParts,
  source: unknown,
  options: { model: string; salt: string; priority: number; signal: AbortSignal | undefined },
): Promise<Sequence> {
  const { layout, ledger } = cache;
  const reader = new ByteReader(operation, source, options.signal);
  try {
    const start = await reader.take(HEADER_AT);
    const rest = await reader.take(headerBytes(operation, start));
    const expected = fingerprint(cache, options.model);
    const header = readHead(operation, Buffer.concat([start, rest]), expected);
    cache.live(operation);
    cache.device.notCapturing(operation);
    const { length, prefixLen, firstLive } = header;
    const text = prefixLen > 0 ? null : new Text(layout.pageSize, options.salt);
    const what = { length, prefixLen, firstLive };
    if (length > layout.maxSeqLen) {
      throw invalid(operation, `${length} tokens are more than maxSeqLen ${layout.maxSeqLen}`);
    }
    if (!ledger.couldHold(what, header.tokens)) {
      throw corrupt(operation, "the header contradicts itself", "save it again");
    }
    const sequence = ledger.load(operation, what, text, options.priority);
    if (!("pages" in sequence)) throw outOfPages(operation, layout, sequence);
    try {
      const tokens = await readBody(operation, cache, reader, sequence, header);
      sequence.inStep = false;
      sequence.pages.tell(tokens);
      return sequence;
    } catch (error) {
      ledger.abandon(sequence);
      throw error;
    }
  } finally {
    await reader.close();
  }
}

/** The told tokens; the pages are on their way to the device. Nobody sees them before the last checksum is right. */
async function readBody(
  operation: string,
  cache: CacheParts,
  reader: ByteReader,
  sequence: Sequence,
  header: SavedHeader,
): Promise<Int32Array> {
  const tokens = Buffer.alloc(tokenBytes(header.tokens));
  const body = new Body(cache.layout, sequence.pages.live, tokens.length);
  if (tokens.length + header.pageBytes !== body.bytes) {
    throw corrupt(operation, "the pages are not those of the header", "save it again");
  }
  const sum = new BodySum();
  for (let at = 0; at < body.bytes; at += BLOCK) {
    const block = await reader.take(Math.min(BLOCK, body.bytes - at));
    cache.live(operation);
    cache.device.notCapturing(operation);
    if (at < tokens.length) block.copy(tokens, at);
    for (const extent of body.extents(at, at + block.length)) {
      const first = extent.at - at;
      cache.memory.writePages(extent, block.subarray(first, first + extent.bytes));
    }
    await sum.add(block);
    await setImmediate();
  }
  if (!(await sum.digest()).equals(await reader.take(SUM_BYTES))) throw wrongSum(operation);
  await reader.end();
  cache.live(operation);
  return Int32Array.from({ length: header.tokens }, (_, i) => tokens.readInt32LE(4 * i));
}

/** Bytes that lie side by side, on the device as in the body. */
export interface PageExtent {
  readonly layer: number;
  readonly page: number;
  /** Bytes of the page before it. */
  readonly offset: number;
  readonly bytes: number;
  /** Where in the body. */
  readonly at: number;
}

/** The pages of a sequence as they stand in the body, behind its tokens. */
class Body {
  readonly bytes: number;
  readonly #layout: CacheLayout;
  readonly #live: Int32Array;
  readonly #start: number;

  constructor(layout: CacheLayout, live: Int32Array, start: number) {
    this.#layout = layout;
    this.#live = live;
    this.#start = start;
    this.bytes = start + live.length * layout.numLayers * layout.pageBytes;
  }

  /** What of [from, to) are pages. */
  *extents(from: number, to: number): Generator<PageExtent> {
    const { pageBytes } = this.#layout;
    const live = this.#live;
    for (let at = Math.max(from, this.#start); at < to; ) {
      const offset = (at - this.#start) % pageBytes;
      const number = (at - this.#start - offset) / pageBytes;
      const layer = Math.floor(number / live.length);
      const first = number % live.length;
      let count = 1;
      while (live[first + count] === live[first]! + count) count++;
      const bytes = Math.min(count * pageBytes - offset, to - at);
      yield { layer, page: live[first]!, offset, bytes, at };
      at += bytes;
    }
  }

  /** The last page's slots behind the last token hold whatever an earlier owner left there, maybe another tenant's. */
  blankUnwritten(block: Buffer, at: number, length: number): void {
    const { numLayers, numKvHeads, pageBytes, pageSize } = this.#layout;
    const filled = length % pageSize;
    if (filled === 0) return;
    const headBytes = pageBytes / (2 * numKvHeads);
    const written = (filled * headBytes) / pageSize;
    for (let layer = 1; layer <= numLayers; layer++) {
      const page = this.#start + (layer * this.#live.length - 1) * pageBytes - at;
      for (let head = page; head < page + pageBytes; head += headBytes) {
        block.subarray(Math.max(0, head + written), Math.max(0, head + headBytes)).fill(0);
      }
    }
  }
}
