// One sequence as bytes. Little-endian:
//
//   0   "FGQA-SEQ"
//   8   uint32 version, uint32 headerBytes
//   16  SHA-256 of the bytes before it, and of the header
//   48  header: JSON, padded with spaces to a multiple of 64
//       body:   tokens [header.tokens] int32, padded with zeros to a multiple of 64
//               pages [numLayers, pages held, 2, numKvHeads, pageSize, headDim], in the sequence's order
//       SHA-256 of the SHA-256 of each 4 MiB of the body
//
// It can be written and read from one end to the other. The checksums find damage, not forgery.

import { createHash, webcrypto } from "node:crypto";
import { show } from "../check";
import { failure, GqaError } from "../errors";

const MAGIC = "FGQA-SEQ";
const VERSION = 2;
const CHECKSUM_AT = 16;
const ALIGN = 64;
/** Of a header that is worth reading. */
const MOST_HEADER_BYTES = 1 << 20;
/** Of the model's name, in JSON: it leaves room in the header for the rest. */
export const MOST_NAME_BYTES: number = 1 << 16;

/** Bytes of the file before the header. */
export const HEADER_AT = 48;
/** Bytes of a checksum. */
export const SUM_BYTES = 32;
/** Bytes of the body that are hashed, read and written at once. */
export const BLOCK: number = 4 << 20;

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

/** Bytes that so many tokens take in the body. */
export function tokenBytes(tokens: number): number {
  return aligned(tokens * 4);
}

/** All before the body. */
export function writeHead(header: SavedHeader): Buffer {
  const json = Buffer.from(JSON.stringify(header));
  const head = Buffer.alloc(aligned(HEADER_AT + json.length), " ");
  head.write(MAGIC, "latin1");
  head.writeUInt32LE(VERSION, 8);
  head.writeUInt32LE(head.length - HEADER_AT, 12);
  json.copy(head, HEADER_AT);
  headSum(head).copy(head, CHECKSUM_AT);
  return head;
}

/** The bytes of the header that follows these, the first HEADER_AT of the file. */
export function headerBytes(operation: string, start: Buffer): number {
  if (start.toString("latin1", 0, MAGIC.length) !== MAGIC) {
    throw corrupt(operation, "these bytes are no saved sequence", "it begins otherwise");
  }
  const version = start.readUInt32LE(8);
  if (version !== VERSION) {
    throw corrupt(operation, `saved in version ${version} of the format`, `this reads ${VERSION}`);
  }
  const bytes = start.readUInt32LE(12);
  if (bytes <= MOST_HEADER_BYTES) return bytes;
  throw corrupt(operation, `the header would have ${bytes} bytes`, CHANGED);
}

/** Reads what `writeHead` wrote. Throws CORRUPT_DATA, saying why. */
export function readHead(operation: string, head: Buffer, expected: Fingerprint): SavedHeader {
  if (!headSum(head).equals(head.subarray(CHECKSUM_AT, HEADER_AT))) throw wrongSum(operation);
  try {
    const header = JSON.parse(head.toString("utf8", HEADER_AT)) as SavedHeader;
    for (const [name, value] of Object.entries(expected)) {
      const saved = header.fingerprint[name];
      if (saved === value) continue;
      const what = `saved with ${name} ${show(saved)}, and this cache has ${show(value)}`;
      throw corrupt(operation, what, "keys and values mean something else here");
    }
    return header;
  } catch (cause) {
    if (cause instanceof GqaError) throw cause;
    const message = `${operation}: the header cannot be read: save it again`;
    throw new GqaError("CORRUPT_DATA", message, { operation, cause });
  }
}

/** The checksum of a body that comes block by block. Hashed by Node's own threads, not by the event loop. */
export class BodySum {
  /** Blocks that are hashed at a time. */
  static readonly #AHEAD = 4;
  readonly #sums: Promise<ArrayBuffer>[] = [];

  /** All blocks but the last have BLOCK bytes. It must not change until this resolves. */
  async add(block: Uint8Array): Promise<void> {
    const sum = webcrypto.subtle.digest("SHA-256", block);
    sum.catch(() => {}); // asked for below, or by nobody where the rest fails first
    this.#sums.push(sum);
    await this.#sums.at(-BodySum.#AHEAD);
  }

  async digest(): Promise<Buffer> {
    const hash = createHash("sha256");
    for (const sum of this.#sums) hash.update(new Uint8Array(await sum));
    return hash.digest();
  }
}

const CHANGED = "bytes were changed or cut off";

export function wrongSum(operation: string): GqaError {
  return corrupt(operation, "the checksum differs", CHANGED);
}

export function corrupt(operation: string, what: string, why: string): GqaError {
  return failure("CORRUPT_DATA", operation, what, why);
}

function headSum(head: Buffer): Buffer {
  const hash = createHash("sha256").update(head.subarray(0, CHECKSUM_AT));
  return hash.update(head.subarray(HEADER_AT)).digest();
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGN) * ALIGN;
}
