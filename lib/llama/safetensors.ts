// Reading the headers of safetensors files: where each tensor of a checkpoint lies. The files are
// untrusted, so all that a header says is checked against the file's size before any of it is used;
// weights themselves are never read here.
//
//   | length u64 | header: JSON, `length` bytes | data: tensors, their offsets from here |

import { type FileHandle, open, readFile, stat } from "node:fs/promises";
import * as path from "node:path";
import { GqaError, invalid } from "../errors";
import { Fields, show } from "./fields";

const OPERATION = "Llama.load";
const MAX_HEADER_BYTES = 100_000_000;
const MAX_RANK = 8;
const INDEX_FILE = "model.safetensors.index.json";
const SINGLE_FILE = "model.safetensors";

const ELEMENT_BYTES: Readonly<Record<string, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
};

/** One tensor in a file. */
export interface StoredTensor {
  readonly file: string;
  /** As the format spells it: "BF16". */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Bytes from the start of the file. */
  readonly position: number;
  readonly bytes: number;
}

function corrupt(file: string, what: string, cause?: unknown): GqaError {
  const message = `${OPERATION}: ${path.basename(file)}: ${what}`;
  return new GqaError("CORRUPT_DATA", message, { operation: OPERATION, cause });
}

/** Every tensor of the checkpoint in `dir`: one file, or several through their index. */
export async function openCheckpoint(dir: string): Promise<Map<string, StoredTensor>> {
  const single = path.join(dir, SINGLE_FILE);
  if (await isFile(single)) return readHeader(single);
  const indexFile = path.join(dir, INDEX_FILE);
  if (!(await isFile(indexFile))) {
    throw invalid(
      OPERATION,
      `dir ${dir} has neither ${SINGLE_FILE} nor ${INDEX_FILE}`,
      "convert the checkpoint to safetensors",
    );
  }
  const weightMap = await readWeightMap(indexFile);
  const headers = new Map<string, Map<string, StoredTensor>>();
  for (const file of new Set(weightMap.values())) {
    headers.set(file, await readHeader(path.join(dir, file)));
  }
  const tensors = new Map<string, StoredTensor>();
  for (const [name, file] of weightMap) {
    const tensor = headers.get(file)?.get(name);
    if (tensor === undefined) throw corrupt(indexFile, `${name} should be in ${file}, and is not`);
    tensors.set(name, tensor);
  }
  return tensors;
}

/** False for what is not there and for what is no file: opening a pipe would wait for ever. */
async function isFile(file: string): Promise<boolean> {
  return stat(file).then(
    (found) => found.isFile(),
    () => false,
  );
}

/** A JSON file of the checkpoint, or undefined where there is none. */
export async function readJson(file: string): Promise<unknown> {
  if (!(await isFile(file))) return undefined;
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    throw corrupt(file, `cannot be read (${(error as Error).message})`, error);
  }
  return parseJson(text, file);
}

function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw corrupt(file, `not valid JSON (${(error as Error).message})`, error);
  }
}

/**
 * Tensor name -> file name. A file name with a folder in it could leave the checkpoint's folder, so
 * none may.
 */
async function readWeightMap(indexFile: string): Promise<Map<string, string>> {
  const index = Fields.of(await readJson(indexFile), INDEX_FILE);
  const map = Fields.of(index.get("weight_map"), `${INDEX_FILE}: weight_map`);
  const files = new Map<string, string>();
  for (const [name, file] of map.entries()) {
    if (typeof file !== "string" || !/^[^/\\\0]+\.safetensors$/.test(file)) {
      throw map.fail(name, "a .safetensors file name without a folder");
    }
    files.set(name, file);
  }
  return files;
}

/** The tensors of one file. */
export async function readHeader(file: string): Promise<Map<string, StoredTensor>> {
  if (!(await isFile(file))) throw corrupt(file, "is not there, or is no file");
  let handle: FileHandle;
  try {
    handle = await open(file, "r");
  } catch (error) {
    throw corrupt(file, `cannot be opened (${(error as Error).message})`, error);
  }
  try {
    const { size } = await handle.stat();
    const prefix = await readBytes(handle, file, 0, 8, size);
    const length = prefix.readBigUInt64LE(0);
    if (length > MAX_HEADER_BYTES || Number(length) > size - 8) {
      throw corrupt(
        file,
        `header length ${length} expected at most ${Math.min(MAX_HEADER_BYTES, size - 8)}`,
      );
    }
    const text = (await readBytes(handle, file, 8, Number(length), size)).toString("utf8");
    return parseHeader(text, file, 8 + Number(length), size - 8 - Number(length));
  } finally {
    await handle.close();
  }
}

async function readBytes(
  handle: FileHandle,
  file: string,
  position: number,
  bytes: number,
  fileBytes: number,
): Promise<Buffer> {
  if (position + bytes > fileBytes) {
    throw corrupt(file, `ends after ${fileBytes} bytes, before its header does`);
  }
  const buffer = Buffer.alloc(bytes);
  for (let done = 0; done < bytes; ) {
    const { bytesRead } = await handle.read(buffer, done, bytes - done, position + done);
    if (bytesRead === 0) throw corrupt(file, "became shorter while it was read");
    done += bytesRead;
  }
  return buffer;
}

/** `dataStart` and `dataBytes`: where the file's data lies. */
function parseHeader(
  text: string,
  file: string,
  dataStart: number,
  dataBytes: number,
): Map<string, StoredTensor> {
  const json = parseJson(text, file);
  const header = Fields.of(json, path.basename(file));
  // JSON.parse keeps the last of two equal keys without a word, and another reader may keep the
  // first.
  if (countKeysWritten(text) !== countKeys(json)) throw corrupt(file, "the header repeats a name");

  const tensors = new Map<string, StoredTensor>();
  for (const [name, entry] of header.entries()) {
    if (name === "__metadata__") continue;
    tensors.set(name, readEntry(name, entry, file, dataStart, dataBytes));
  }
  const ordered = [...tensors].sort(([, a], [, b]) => a.position - b.position || a.bytes - b.bytes);
  let end = dataStart;
  for (const [name, tensor] of ordered) {
    if (tensor.position !== end) {
      const fault =
        tensor.position < end ? "overlaps the one before it" : "leaves a hole before it";
      throw corrupt(file, `tensor ${name} ${fault}`);
    }
    end = tensor.position + tensor.bytes;
  }
  if (end !== dataStart + dataBytes) {
    throw corrupt(file, `${dataStart + dataBytes - end} bytes after the last tensor`);
  }
  return tensors;
}

function readEntry(
  name: string,
  entry: unknown,
  file: string,
  dataStart: number,
  dataBytes: number,
): StoredTensor {
  const fields = Fields.of(entry, `${path.basename(file)}: tensor ${name}`);
  const dtype = fields.get("dtype");
  const elementBytes =
    typeof dtype === "string" && Object.hasOwn(ELEMENT_BYTES, dtype)
      ? ELEMENT_BYTES[dtype]
      : undefined;
  if (elementBytes === undefined) {
    throw fields.fail("dtype", `one of ${Object.keys(ELEMENT_BYTES).join(", ")}`);
  }
  const shape = fields.get("shape");
  if (!Array.isArray(shape) || shape.length > MAX_RANK || !shape.every(isSize)) {
    throw fields.fail("shape", `at most ${MAX_RANK} whole numbers`);
  }
  const bytes = shape.reduce((product: number, size: number) => product * size, elementBytes);
  const offsets = fields.get("data_offsets");
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    throw fields.fail("data_offsets", "[begin, end]");
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end || end > dataBytes) {
    throw fields.fail("data_offsets", `a range in the file's ${dataBytes} bytes of data`);
  }
  if (end - begin !== bytes) {
    throw fields.fail("data_offsets", `${bytes} bytes, as ${dtype} ${show(shape)} needs`);
  }
  if (begin % elementBytes !== 0) {
    throw fields.fail("data_offsets", `a multiple of ${elementBytes}, the element size`);
  }
  return { file, dtype: dtype as string, shape, position: dataStart + begin, bytes };
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** Keys of a parsed JSON value, at every depth. */
function countKeys(value: unknown): number {
  let count = 0;
  const rest = [value];
  while (rest.length > 0) {
    const next = rest.pop();
    if (typeof next !== "object" || next === null) continue;
    if (!Array.isArray(next)) count += Object.keys(next).length;
    for (const inner of Object.values(next)) rest.push(inner);
  }
  return count;
}

/** Keys in the text of a valid JSON value: its strings that a colon follows. */
function countKeysWritten(text: string): number {
  let count = 0;
  for (let i = text.indexOf('"'); i >= 0; i = text.indexOf('"', i)) {
    for (i++; text[i] !== '"'; i++) if (text[i] === "\\") i++;
    for (i++; " \t\r\n".includes(text[i] ?? "x"); i++);
    if (text[i] === ":") count++;
  }
  return count;
}
