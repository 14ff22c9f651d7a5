// Sequences between a cache and bytes on the host. Meanwhile the sequence is BUSY, and the event loop runs.

import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { invalid } from "../errors";
import type { CacheLayout } from "./config";
import { NULL_PAGE } from "./page-pool";
import { outOfPages } from "./requests";
import { corrupt, type Fingerprint, layOut, readSaved, seal } from "./saved";
import type { Sequence } from "./sequence";
import type { CacheParts } from "./step";
import { Text } from "./text";

/** Uploaded in one turn of the event loop. */
const SLICE = 4 << 20;

export interface SaveOptions {
  /** Names the weights. A sequence saved under one name is not loaded under another. Default "". */
  model?: string;
}

export interface LoadOptions extends SaveOptions {
  /** As in `open`: under which the sequence's pages are found by others. It is not saved. */
  salt?: string;
  priority?: number;
}

export function checkModel(operation: string, model: unknown = ""): string {
  if (typeof model === "string") return model;
  throw invalid(operation, "model expected a string");
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

export async function saveSequence(
  operation: string,
  cache: CacheParts,
  sequence: Sequence,
  model: string,
): Promise<Buffer> {
  const { layout, ledger, memory } = cache;
  ledger.hold(operation, sequence);
  try {
    const { pages, length, prefixLen } = sequence;
    const live = pages.entries.filter((page) => page !== NULL_PAGE);
    const told = Math.min(length, sequence.told);
    const tokens = Int32Array.from({ length: told }, (_, i) => pages.text!.token(i));
    const pageBytes = live.length * layout.numLayers * layout.pageBytes;
    const header = { length, prefixLen, firstLive: pages.firstLive, tokens: told, pageBytes };
    const made = fingerprint(cache, model);
    const saved = layOut(operation, { fingerprint: made, ...header }, tokens);
    for (const part of parts(layout, live, Number.POSITIVE_INFINITY)) {
      cache.live(operation);
      saved.pages.set(new Uint8Array(await memory.readPages(part)), part.at);
    }
    cache.live(operation);
    if (length % layout.pageSize > 0) blankUnwritten(layout, live.length, length, saved.pages);
    await seal(saved.bytes);
    return saved.bytes;
  } finally {
    sequence.inStep = false;
  }
}

export async function loadSequence(
  operation: string,
  cache: CacheParts,
  data: unknown,
  options: { model: string; salt: string; priority: number },
): Promise<Sequence> {
  const { layout, ledger, memory } = cache;
  const expected = fingerprint(cache, options.model);
  const { header, tokens, pages } = await readSaved(operation, data, expected);
  cache.live(operation);
  cache.device.notCapturing(operation);
  const { length, prefixLen, firstLive } = header;
  const text = prefixLen > 0 ? null : new Text(layout.pageSize, options.salt);
  const what = { length, prefixLen, firstLive };
  if (length > layout.maxSeqLen) {
    throw invalid(operation, `${length} tokens are more than maxSeqLen ${layout.maxSeqLen}`);
  }
  if (!ledger.couldHold(what, tokens.length)) {
    throw corrupt(operation, "the header contradicts itself", "save it again");
  }
  const sequence = ledger.load(operation, what, text, options.priority);
  if (!("pages" in sequence)) throw outOfPages(operation, layout, sequence);
  try {
    const live = sequence.pages.entries.filter((page) => page !== NULL_PAGE);
    if (pages.length !== live.length * layout.numLayers * layout.pageBytes) {
      throw corrupt(operation, "the pages are not those of the header", "save it again");
    }
    for (const part of parts(layout, live, SLICE)) {
      memory.writePages(part, pages.slice(part.at, part.at + part.count * layout.pageBytes));
      await setImmediate();
      cache.live(operation);
    }
    sequence.inStep = false;
    sequence.pages.tell(tokens);
    return sequence;
  } catch (error) {
    ledger.abandon(sequence);
    throw error;
  }
}

/** Pages of one layer that lie side by side, on the device as in the saved bytes. */
export interface PageRun {
  readonly layer: number;
  readonly first: number;
  readonly count: number;
  /** Where they begin in the bytes [numLayers, pages of the sequence, pageBytes]. */
  readonly at: number;
}

/** All pages of all layers, in runs of at most so many bytes. */
function* parts(layout: CacheLayout, live: Int32Array, mostBytes: number): Generator<PageRun> {
  const { numLayers, pageBytes } = layout;
  const most = Math.max(1, Math.floor(mostBytes / pageBytes));
  for (let layer = 0; layer < numLayers; layer++) {
    for (let i = 0; i < live.length; ) {
      const first = live[i]!;
      let count = 1;
      while (count < most && live[i + count] === first + count) count++;
      yield { layer, first, count, at: (layer * live.length + i) * pageBytes };
      i += count;
    }
  }
}

/** The last page's slots behind the last token hold whatever an earlier owner left there, maybe another tenant's. */
function blankUnwritten(
  layout: CacheLayout,
  count: number,
  length: number,
  pages: Uint8Array,
): void {
  const { numLayers, numKvHeads, pageBytes, pageSize } = layout;
  const headBytes = pageBytes / (2 * numKvHeads);
  const written = ((length % pageSize) * headBytes) / pageSize;
  for (let layer = 0; layer < numLayers; layer++) {
    const page = ((layer + 1) * count - 1) * pageBytes;
    for (let head = page; head < page + pageBytes; head += headBytes) {
      pages.fill(0, head + written, head + headBytes);
    }
  }
}
