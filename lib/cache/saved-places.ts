// Where saved bytes go to and come from: files, streams, memory.

import { randomUUID } from "node:crypto";
import { constants, type FileHandle, open, realpath, rename, rm, stat } from "node:fs/promises";
import { type Readable, Stream, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setImmediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isUint8Array } from "node:util/types";
import { checkMemory, hostCopy, show } from "../check";
import { GqaError, invalid } from "../errors";
import { throwIfAborted } from "../signal";
import { corrupt } from "./saved";

/** What `cache.load` reads. */
export type SavedSource = Uint8Array | string | URL | AsyncIterable<Uint8Array>;

type Bytes = AsyncGenerator<Buffer, void, undefined>;

/** All of it in memory. */
export async function toBuffer(operation: string, bytes: Bytes, length: number): Promise<Buffer> {
  const { buffer } = hostCopy(operation, "the sequence", Uint8Array, length);
  const all = Buffer.from(buffer as ArrayBuffer);
  let at = 0;
  for await (const part of bytes) {
    part.copy(all, at);
    at += part.length;
  }
  return all;
}

/**
 * A file is there as a whole or not at all: it is written beside its place, and moved there when it is done. Only a
 * crash leaves the part behind.
 */
export async function toFile(operation: string, bytes: Bytes, file: string): Promise<void> {
  const { place, mode } = await replaceable(operation, file);
  const part = `${place}.${randomUUID()}.part`;
  const failed = (error: unknown) => ours(operation, `cannot write ${show(file)}`, error);
  const handle = await open(part, "wx", mode).catch((error) => {
    throw failed(error);
  });
  try {
    try {
      for await (const block of bytes) await writeAll(handle, block);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(part, place);
  } catch (error) {
    await rm(part, { force: true });
    throw failed(error);
  }
}

/** Ends the stream; where anything fails, destroys it. An abort is heard even where the stream is deaf to it. */
export async function toStream(
  operation: string,
  bytes: Bytes,
  stream: Writable,
  signal: AbortSignal | undefined,
): Promise<void> {
  let onAbort = () => {};
  const aborted = new Promise<void>((resolve) => {
    onAbort = resolve;
    signal?.addEventListener("abort", onAbort, { once: true });
  });
  const sent = pipeline(bytes, stream, signal === undefined ? {} : { signal });
  try {
    await Promise.race([sent, aborted]);
    throwIfAborted(operation, signal);
  } catch (error) {
    sent.catch(() => {});
    await bytes.return();
    throwIfAborted(operation, signal);
    throw ours(operation, "the stream failed", error);
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
}

/** By its shape, here and below: a URL or stream may come from another realm or package. */
function isUrl(value: unknown): value is URL {
  const { href, protocol } = (value ?? {}) as Partial<URL>;
  return typeof href === "string" && typeof protocol === "string";
}

export function checkFile(operation: string, name: string, file: unknown): string {
  if (typeof file === "string") return file;
  if (!isUrl(file) || file.protocol !== "file:") {
    throw invalid(operation, `${name} expected a path or a file: URL, got ${show(file)}`);
  }
  try {
    return fileURLToPath(file.href);
  } catch (error) {
    throw ours(operation, `${name} expected a file: URL of this machine, got ${file.href}`, error);
  }
}

const WRITABLE = ["write", "end", "on", "once", "emit", "removeListener"] as const;

export function checkWritable(operation: string, stream: unknown): Writable {
  const methods = (stream ?? {}) as Partial<Writable>;
  if (!WRITABLE.every((name) => typeof methods[name] === "function")) {
    throw invalid(operation, `stream expected a Writable, got ${show(stream)}`);
  }
  // Nothing would ever come of writing to it, not even an error.
  if (methods.writable === false) {
    throw invalid(operation, "stream expected a Writable, got one that has ended", "open another");
  }
  return stream as Writable;
}

/** The bytes of a source, piece by piece as they come. Throws INVALID_ARGUMENT for what is none. */
export function bytesOf(operation: string, source: unknown): AsyncIterable<unknown> {
  if (isUint8Array(source)) {
    checkMemory(operation, "source", source);
    return oneByOne(source);
  }
  if (typeof source === "object" && source !== null && Symbol.asyncIterator in source) {
    return source as AsyncIterable<unknown>;
  }
  if (typeof source === "string" || isUrl(source)) {
    return fileBytes(operation, checkFile(operation, "source", source));
  }
  throw invalid(
    operation,
    `source expected a Buffer, a path, a file: URL or a Readable, got ${show(source)}`,
  );
}

/** Hands out bytes in the lengths that are asked for. */
export class ByteReader {
  readonly #operation: string;
  readonly #source: unknown;
  readonly #pieces: AsyncIterator<unknown>;
  readonly #signal: AbortSignal | undefined;
  #piece: Uint8Array = new Uint8Array(0);
  #position = 0;
  #waiting = false;

  constructor(operation: string, source: unknown, signal: AbortSignal | undefined) {
    this.#operation = operation;
    this.#source = source;
    try {
      this.#pieces = bytesOf(operation, source)[Symbol.asyncIterator]();
    } catch (error) {
      throw ours(operation, "source cannot be read", error);
    }
    this.#signal = signal;
  }

  /** Exactly so many, or CORRUPT_DATA. */
  async take(count: number): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(count);
    for (let at = 0; at < count; ) {
      if (this.#piece.length === 0 && !(await this.#advance())) {
        const end = this.#position + at;
        throw corrupt(this.#operation, `the bytes end at ${end}`, "they were cut off");
      }
      const part = this.#piece.subarray(0, count - at);
      bytes.set(part, at);
      at += part.length;
      this.#piece = this.#piece.subarray(part.length);
    }
    this.#position += count;
    return bytes;
  }

  /** CORRUPT_DATA where more bytes follow. */
  async end(): Promise<void> {
    if (this.#piece.length === 0 && !(await this.#advance())) return;
    const what = `more bytes follow behind ${this.#position}`;
    throw corrupt(this.#operation, what, "something was written behind it");
  }

  /** Lets the source go, read to its end or not. What it makes of this is its own affair: the outcome is known. */
  async close(): Promise<void> {
    const gone = (async () => this.#pieces.return?.())().catch(() => {});
    // A file is closed by then. A stream that nothing comes from answers never, unless it is destroyed; and another
    // iterator may not answer at all.
    if (typeof this.#source === "string" || isUrl(this.#source)) await gone;
    else if (!this.#waiting) await Promise.race([gone, setImmediate()]);
    else if (this.#source instanceof Stream) (this.#source as Readable).destroy();
  }

  /** The next piece that is not empty; false at the end. */
  async #advance(): Promise<boolean> {
    while (this.#piece.length === 0) {
      const { done, value } = await this.#next();
      if (done === true) return false;
      if (!isUint8Array(value)) {
        const what = `the stream gave ${show(value)}, expected bytes`;
        throw invalid(this.#operation, what, "set no encoding, and no object mode");
      }
      checkMemory(this.#operation, "a piece of the stream", value);
      this.#piece = value;
    }
    return true;
  }

  async #next(): Promise<IteratorResult<unknown>> {
    const signal = this.#signal;
    throwIfAborted(this.#operation, signal);
    let onAbort = () => {};
    const aborted = new Promise<null>((resolve) => {
      onAbort = () => resolve(null);
      signal?.addEventListener("abort", onAbort, { once: true });
    });
    try {
      this.#waiting = true;
      const next = await Promise.race([this.#pieces.next(), aborted]);
      this.#waiting = next === null;
      throwIfAborted(this.#operation, signal);
      if (typeof next === "object" && next !== null) return next;
      throw invalid(
        this.#operation,
        `source's iterator expected { done, value }, got ${show(next)}`,
      );
    } catch (error) {
      this.#waiting &&= signal?.aborted === true;
      throw ours(this.#operation, "the stream failed", error);
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }
}

async function* oneByOne(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

async function* fileBytes(operation: string, file: string): AsyncGenerator<Uint8Array> {
  let handle: FileHandle;
  try {
    // A pipe or a device could block, or never end.
    handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw ours(operation, `cannot open ${show(file)}`, error);
  }
  try {
    if (!(await handle.stat()).isFile()) {
      throw invalid(operation, `${show(file)} is not a regular file`, "pass a stream of it");
    }
    for (;;) {
      const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(1 << 20));
      if (bytesRead === 0) return;
      yield buffer.subarray(0, bytesRead);
    }
  } catch (error) {
    throw ours(operation, `cannot read ${show(file)}`, error);
  } finally {
    await handle.close();
  }
}

/** What the name stands for, if a file may take its place, and who may read it there. */
async function replaceable(operation: string, file: string) {
  try {
    const old = await stat(file);
    if (old.isFile()) return { place: await realpath(file), mode: old.mode & 0o777 };
  } catch (error) {
    const isNew = (error as NodeJS.ErrnoException).code === "ENOENT";
    if (isNew && file !== "") return { place: file, mode: 0o666 };
    throw ours(operation, `cannot write ${show(file)}`, error);
  }
  throw invalid(operation, `${show(file)} is not a regular file`, "pass a stream to it");
}

async function writeAll(handle: FileHandle, bytes: Buffer): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    at += (await handle.write(bytes, at)).bytesWritten;
  }
}

/** INVALID_ARGUMENT for what the system, or a stream of the user's, says of a place. */
function ours(operation: string, what: string, cause: unknown): GqaError {
  if (cause instanceof GqaError) return cause;
  const reason = cause instanceof Error ? cause.message : show(cause);
  const message = `${operation}: ${what}: ${reason}`;
  return new GqaError("INVALID_ARGUMENT", message, { operation, cause });
}
