// One sequence as bytes. Little-endian:
//
//   0   "FGQA-SEQ"
//   8   uint32 version, uint32 headerBytes
//   16  SHA-256 of all bytes but these 32
//   48  header: JSON, padded with spaces so that what follows is aligned to 64
//       tokens [header.tokens] int32, padded with zeros to 64
//       pages  [numLayers, pages held, 2, numKvHeads, pageSize, headDim], in the sequence's order
//
// The checksum finds damage, not forgery.

import { createHash, type Hash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { isUint8Array } from "node:util/types";
import { checkMemory, hostCopy, show } from "../check";
import { failure, GqaError, invalid } from "../errors";

const MAGIC = "FGQA-SEQ";
const VERSION = 1;
const CHECKSUM_AT = 16;
const HEADER_AT = 48;
const ALIGN = 64;
/** Hashed in one turn of the event loop. */
const SLICE = 1 << 20;

/** What must be the same where a sequence is loaded: by name, so that a refusal can say what is not. */
export type Fingerprint = Readonly<Record<string, string | number>>;

export interface SavedHeader {
  readonly fingerprint: Fingerprint;
  readonly length: number;
  readonly prefixLen: number;
  /** First page behind the sinks that is held. */
  readonly firstLive: number;
  /** How many token ids were told. */
  readonly tokens: number;
  /** Bytes of pages. */
  readonly pageBytes: number;
}

export interface Saved {
  readonly header: SavedHeader;
  readonly tokens: Int32Array;
  /** A view of the bytes given. */
  readonly pages: Uint8Array;
}

/** Makes room for a sequence, writes its header and tokens, and leaves `pages` to be filled, and then `seal`ed. */
export function layOut(
  operation: string,
  header: SavedHeader,
  tokens: Int32Array,
): { bytes: Buffer; pages: Uint8Array } {
  const json = Buffer.from(JSON.stringify(header));
  const headerBytes = aligned(HEADER_AT + json.length) - HEADER_AT;
  const tokensAt = HEADER_AT + headerBytes;
  const pagesAt = aligned(tokensAt + tokens.byteLength);
  const length = pagesAt + header.pageBytes;
  const bytes = Buffer.from(
    hostCopy(operation, "the sequence", Uint8Array, length).buffer as ArrayBuffer,
  );
  bytes.write(MAGIC, "latin1");
  bytes.writeUInt32LE(VERSION, 8);
  bytes.writeUInt32LE(headerBytes, 12);
  bytes.fill(" ", HEADER_AT, tokensAt);
  json.copy(bytes, HEADER_AT);
  bytes.set(new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength), tokensAt);
  return { bytes, pages: bytes.subarray(pagesAt) };
}

export async function seal(bytes: Buffer): Promise<void> {
  (await checksum(bytes)).copy(bytes, CHECKSUM_AT);
}

/** Reads what `layOut` and `seal` wrote. Throws CORRUPT_DATA, saying why; INVALID_ARGUMENT for what are no bytes. */
export async function readSaved(
  operation: string,
  data: unknown,
  expected: Fingerprint,
): Promise<Saved> {
  if (!isUint8Array(data)) {
    throw invalid(operation, `data expected a Buffer or Uint8Array, got ${show(data)}`);
  }
  checkMemory(operation, "data", data);
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  if (bytes.length < HEADER_AT || bytes.toString("latin1", 0, MAGIC.length) !== MAGIC) {
    throw corrupt(operation, "these bytes are no saved sequence", "it begins otherwise");
  }
  const version = bytes.readUInt32LE(8);
  if (version !== VERSION) {
    throw corrupt(operation, `saved in version ${version} of the format`, `this reads ${VERSION}`);
  }
  const sum = await checksum(bytes);
  if (bytes.length < HEADER_AT || !sum.equals(bytes.subarray(CHECKSUM_AT, HEADER_AT))) {
    throw corrupt(operation, "the checksum differs", "bytes were changed or cut off");
  }
  return parse(operation, bytes, expected);
}

function parse(operation: string, bytes: Buffer, expected: Fingerprint): Saved {
  try {
    const tokensAt = HEADER_AT + bytes.readUInt32LE(12);
    const header = JSON.parse(bytes.toString("utf8", HEADER_AT, tokensAt)) as SavedHeader;
    for (const [name, value] of Object.entries(expected)) {
      const saved = header.fingerprint[name];
      if (saved === value) continue;
      const what = `saved with ${name} ${show(saved)}, and this cache has ${show(value)}`;
      throw corrupt(operation, what, "keys and values mean something else here");
    }
    const pagesAt = aligned(tokensAt + header.tokens * 4);
    if (pagesAt + header.pageBytes !== bytes.length) {
      throw corrupt(operation, `${bytes.length} bytes do not fit the header`, "save it again");
    }
    const tokens = Int32Array.from({ length: header.tokens }, (_, i) =>
      bytes.readInt32LE(tokensAt + 4 * i),
    );
    return { header, tokens, pages: bytes.subarray(pagesAt) };
  } catch (cause) {
    if (cause instanceof GqaError) throw cause;
    const message = `${operation}: the header cannot be read: save it again`;
    throw new GqaError("CORRUPT_DATA", message, { operation, cause });
  }
}

export function corrupt(operation: string, what: string, why: string): GqaError {
  return failure("CORRUPT_DATA", operation, what, why);
}

/** In slices, so that the event loop runs in between. */
async function checksum(bytes: Buffer): Promise<Buffer> {
  const hash: Hash = createHash("sha256").update(bytes.subarray(0, CHECKSUM_AT));
  for (let at = HEADER_AT; at < bytes.length; at += SLICE) {
    hash.update(bytes.subarray(at, at + SLICE));
    await setImmediate();
  }
  return hash.digest();
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGN) * ALIGN;
}
