// Checkpoints are untrusted: whatever is wrong with a file, loading it is refused with a reason, and nothing is left.

import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import type { GqaError } from "../lib/index";
import { Llama } from "../lib/llama/index";
import { testDevice } from "./support/device";
import { rejected, type Wrong } from "./support/errors";
import { goldenDir } from "./support/golden";
import { safetensorsBytes } from "./support/safetensors";

const device = await testDevice();
const scratch = mkdtempSync(join(tmpdir(), "flash-gqa-hostile-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const SINGLE = join(goldenDir, "models", "mistral_window16");
const SHARDED = join(goldenDir, "models", "qwen3_qknorm_sharded");
const LLAMA = join(goldenDir, "models", "llama_llama3rope");

let count = 0;
let folder = "";
let before = 0;

beforeEach(async () => {
  folder = join(scratch, `case-${count++}`);
  await device.synchronize();
  before = device.memory().allocated;
});
afterEach(async () => {
  await device.synchronize();
  expect(device.memory().allocated, "bytes left on the device").toBeLessThanOrEqual(before);
  rmSync(folder, { recursive: true, force: true });
});

function copy(of = SINGLE): string {
  cpSync(of, folder, { recursive: true });
  return folder;
}

async function refused(code: GqaError["code"], ...names: (string | RegExp)[]): Promise<void> {
  const error = await rejected(Llama.load(folder, { device, maxTokens: 64 }));
  expect(error.code, error.message).toBe(code);
  expect(error.message.length).toBeLessThan(1000);
  for (const name of names) expect(error.message).toMatch(name);
}

/** Header and data of the single-file model. */
function parts(): { header: Record<string, Entry>; data: Buffer } {
  const bytes = readFileSync(join(SINGLE, "model.safetensors"));
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + length));
  return { header, data: bytes.subarray(8 + length) };
}
interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: number[];
}

const write = (name: string, content: string | Buffer) =>
  writeFileSync(join(folder, name), content);

describe("a safetensors file with", () => {
  const NORM = "model.norm.weight";
  type Header = Record<string, Entry>;

  it.each<
    [string, (header: Header, data: Buffer) => unknown, GqaError["code"], ...(string | RegExp)[]]
  >([
    ["a hole where a tensor was", (h) => delete h[NORM], "CORRUPT_DATA", "model.safetensors"],
    [
      "a tensor missing",
      (h) => {
        h["model.other.weight"] = h[NORM]!;
        delete h[NORM];
      },
      "CORRUPT_DATA",
      NORM,
    ],
    [
      "a tensor too many",
      (h) => (h["model.extra"] = { ...h[NORM]!, data_offsets: [0, 0], shape: [0] }),
      "UNSUPPORTED",
      "model.extra",
    ],
    [
      "another shape",
      (h) => (h[NORM]!.shape = [h[NORM]!.shape[0]! / 2, 2]),
      "CORRUPT_DATA",
      NORM,
      "shape",
    ],
    ["a shape that the bytes do not fit", (h) => (h[NORM]!.shape = [7]), "CORRUPT_DATA", NORM],
    ["a negative size", (h) => (h[NORM]!.shape = [-128]), "CORRUPT_DATA", NORM],
    ["a size beyond 2^53", (h) => (h[NORM]!.shape = [2 ** 60]), "CORRUPT_DATA", NORM],
    [
      "sizes whose product overflows",
      (h) => (h[NORM]!.shape = [2 ** 40, 2 ** 40]),
      "CORRUPT_DATA",
      NORM,
    ],
    ["an unknown dtype", (h) => (h[NORM]!.dtype = "F7"), "CORRUPT_DATA", NORM, "F7"],
    [
      "a dtype that it does not compute",
      (h) => (h[NORM]!.dtype = "I16"),
      "UNSUPPORTED",
      NORM,
      "I16",
    ],
    ["offsets backwards", (h) => h[NORM]!.data_offsets.reverse(), "CORRUPT_DATA", NORM],
    [
      "offsets beyond the file",
      (h) => (h[NORM]!.data_offsets = h[NORM]!.data_offsets.map((x) => x + 1e9)),
      "CORRUPT_DATA",
      NORM,
    ],
    [
      "negative offsets",
      (h) => (h[NORM]!.data_offsets = h[NORM]!.data_offsets.map((x) => x - 1e9)),
      "CORRUPT_DATA",
      NORM,
    ],
    [
      "fractional offsets",
      (h) => (h[NORM]!.data_offsets = h[NORM]!.data_offsets.map((x) => x + 0.5)),
      "CORRUPT_DATA",
      NORM,
    ],
    ["one offset", (h) => h[NORM]!.data_offsets.pop(), "CORRUPT_DATA", NORM],
    [
      "tensors that overlap",
      (h) => {
        const [a, b] = Object.keys(h).filter((k) => h[k]!.data_offsets && h[k]!.shape.length === 1);
        h[a!]!.data_offsets = h[b!]!.data_offsets;
      },
      "CORRUPT_DATA",
    ],
    ["no shape", (h) => delete (h[NORM] as Partial<Entry>).shape, "CORRUPT_DATA", NORM],
    [
      "a string for an entry",
      (h) => ((h as Record<string, unknown>)[NORM] = "x"),
      "CORRUPT_DATA",
      NORM,
    ],
  ])("%s", async (_, change, code, ...names) => {
    copy();
    const { header, data } = parts();
    change(header, data);
    write("model.safetensors", safetensorsBytes(header, data));
    await refused(code, ...names);
  });

  it.each<[string, Buffer]>([
    ["nothing in it", Buffer.alloc(0)],
    ["7 bytes", Buffer.alloc(7)],
    ["a header length of 2^63", Buffer.from("ffffffffffffff7f7b7d", "hex")],
    ["a header length beyond the file", Buffer.from("00100000000000007b7d", "hex")],
    ["a header that is no JSON", safetensorsBytes("{,", 0)],
    ["a header that is an array", safetensorsBytes([], 0)],
    ["a header that is null", safetensorsBytes(null, 0)],
    ["a header of no UTF-8", safetensorsBytes('{"\u00ff', 0).fill(0xff, 8)],
    [
      "a header with a name twice",
      safetensorsBytes(
        '{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
      ),
    ],
    [
      "a header with __proto__",
      safetensorsBytes('{"__proto__":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', 0),
    ],
    ["a header nested deep", safetensorsBytes("[".repeat(100_000), 0)],
  ])("%s", async (_, bytes) => {
    copy();
    write("model.safetensors", bytes);
    await refused("CORRUPT_DATA");
  });

  it("its end cut off", async () => {
    const path = join(copy(), "model.safetensors");
    for (const size of [1_000_000, 5000, 100]) {
      truncateSync(path, size);
      await refused("CORRUPT_DATA", "model.safetensors");
    }
  });

  it("bytes behind its end", async () => {
    copy();
    const { header, data } = parts();
    write("model.safetensors", safetensorsBytes(header, Buffer.concat([data, Buffer.alloc(16)])));
    await refused("CORRUPT_DATA", "model.safetensors");
  });
});

describe("an index of several files", () => {
  const INDEX = "model.safetensors.index.json";
  const index = () => JSON.parse(readFileSync(join(SHARDED, INDEX), "utf8"));

  it("that names a file which is not there", async () => {
    copy(SHARDED);
    rmSync(join(folder, "model-00002-of-00003.safetensors"));
    await refused("CORRUPT_DATA", "model-00002");
  });

  it.each(["../model.safetensors", "/etc/passwd", "a/b.safetensors", "", "x.bin", 7, null])(
    "that names %o",
    async (name) => {
      copy(SHARDED);
      const content = index();
      content.weight_map[Object.keys(content.weight_map)[0]!] = name;
      write(INDEX, JSON.stringify(content));
      await refused("CORRUPT_DATA");
    },
  );

  it("that sends a tensor to the wrong file", async () => {
    copy(SHARDED);
    const content = index();
    const [first, ...rest] = Object.keys(content.weight_map);
    const other = rest.find((name) => content.weight_map[name] !== content.weight_map[first!])!;
    content.weight_map[first!] = content.weight_map[other];
    write(INDEX, JSON.stringify(content));
    await refused("CORRUPT_DATA", first!);
  });

  it("that is no object", async () => {
    copy(SHARDED);
    for (const content of ["", "[]", "null", '{"weight_map":[]}', "{}"]) {
      write(INDEX, content);
      await refused("CORRUPT_DATA", "index");
    }
  });
});

describe("a config.json", () => {
  it.each<[string, Record<string, unknown>, GqaError["code"], ...string[]]>([
    [
      "of another architecture",
      { architectures: ["GPT2LMHeadModel"] },
      "UNSUPPORTED",
      "GPT2LMHeadModel",
    ],
    [
      "of two architectures",
      { architectures: ["MistralForCausalLM", "LlamaForCausalLM"] },
      "CORRUPT_DATA",
      "architectures",
    ],
    ["that contradicts itself", { model_type: "llama" }, "CORRUPT_DATA", "model_type"],
    ["with no layers", { num_hidden_layers: 0 }, "CORRUPT_DATA", "num_hidden_layers"],
    ["with a billion layers", { num_hidden_layers: 1e9 }, "CORRUPT_DATA", "num_hidden_layers"],
    ["with one layer too many", { num_hidden_layers: 9 }, "CORRUPT_DATA", "model.layers"],
    ["with fewer layers than the file", { num_hidden_layers: 1 }, "UNSUPPORTED", "model.layers"],
    ["with a string for a size", { hidden_size: "128" }, "CORRUPT_DATA", "hidden_size"],
    ["with a fractional size", { hidden_size: 128.5 }, "CORRUPT_DATA", "hidden_size"],
    [
      "with heads that do not divide",
      { num_key_value_heads: 3 },
      "CORRUPT_DATA",
      "num_key_value_heads",
    ],
    ["with a head_dim that is not the file's", { head_dim: 64 }, "CORRUPT_DATA", "shape"],
    ["with a vocabulary that is not the file's", { vocab_size: 100 }, "CORRUPT_DATA"],
    ["with another activation", { hidden_act: "gelu" }, "UNSUPPORTED", "hidden_act"],
    [
      "that is quantised",
      { quantization_config: { bits: 4 } },
      "UNSUPPORTED",
      "quantization_config",
    ],
    ["with a window of 0", { sliding_window: 0 }, "CORRUPT_DATA", "sliding_window"],
    ["with a negative window", { sliding_window: -5 }, "CORRUPT_DATA", "sliding_window"],
    [
      "with layer_types of other layers",
      { layer_types: ["sliding_attention"] },
      "CORRUPT_DATA",
      "layer_types",
    ],
    [
      "with an unknown layer type",
      { layer_types: new Array(3).fill("linear_attention") },
      "UNSUPPORTED",
      "layer_types",
    ],
    ["with an unknown dtype", { dtype: "int8" }, "UNSUPPORTED", "dtype"],
    ["without eps", { rms_norm_eps: null }, "CORRUPT_DATA", "rms_norm_eps"],
    ["with a negative eps", { rms_norm_eps: -1 }, "CORRUPT_DATA", "rms_norm_eps"],
    [
      "with an unknown RoPE",
      { rope_parameters: { rope_type: "spiral", rope_theta: 1e4 } },
      "UNSUPPORTED|INVALID_ARGUMENT|CORRUPT_DATA" as GqaError["code"],
      "spiral",
    ],
    [
      "with a RoPE of theta 0",
      { rope_parameters: { rope_type: "default", rope_theta: 0 } },
      "INVALID_ARGUMENT|CORRUPT_DATA" as GqaError["code"],
      "theta",
    ],
  ])("%s", async (_, change, code, ...names) => {
    copy();
    const config = JSON.parse(readFileSync(join(SINGLE, "config.json"), "utf8"));
    const layers = config.num_hidden_layers;
    if (Array.isArray(change.layer_types) && change.layer_types.length === 3) {
      change = { layer_types: new Array(layers).fill("linear_attention") };
    }
    write("config.json", JSON.stringify({ ...config, ...change }));
    const error = await rejected(Llama.load(folder, { device, maxTokens: 64 }));
    expect(code.split("|"), error.message).toContain(error.code);
    for (const name of names) expect(error.message).toMatch(name);
  });

  it("that is no JSON, or none", async () => {
    copy();
    const deep = "[".repeat(1e5) + "]".repeat(1e5);
    for (const content of ["", "{", "[]", "null", '"x"', deep]) {
      write("config.json", content);
      await refused("CORRUPT_DATA", "config.json");
    }
    rmSync(join(folder, "config.json"));
    await refused("INVALID_ARGUMENT", "config.json");
    mkdirSync(join(folder, "config.json"));
    await refused("INVALID_ARGUMENT", "config.json");
  });

  it("beside a tokenizer that is damaged", async () => {
    copy();
    for (const content of ["{", "[]", "{}", '{"model":{"type":"BPE"}}']) {
      write("tokenizer.json", content);
      await refused("CORRUPT_DATA", "tokenizer");
    }
  });
});

describe("Llama.load refuses", () => {
  const load = (dir: Wrong, options?: Wrong) => Llama.load(dir, { device, ...options });
  it.each<[string, () => Promise<unknown>, string]>([
    ["no folder", () => load(undefined), "dir"],
    ["an empty name", () => load(""), "dir"],
    ["a folder that is not there", () => load(join(scratch, "nowhere")), "config.json"],
    ["a file for a folder", () => load(join(SINGLE, "config.json")), "config.json"],
    [
      "a folder without weights",
      () => {
        mkdirSync(folder);
        copyFileSync(join(LLAMA, "config.json"), join(folder, "config.json"));
        return load(folder);
      },
      "model.safetensors",
    ],
    ["an unknown option", () => load(SINGLE, { dtyp: 1 }), "dtype"],
    ["int32", () => load(SINGLE, { dtype: "int32" }), "dtype"],
    ["maxTokens 0", () => load(SINGLE, { maxTokens: 0 }), "maxTokens"],
    ["a window that is a number", () => load(SINGLE, { window: 5 }), "window"],
    ["an unknown device", () => Llama.load(SINGLE, { device: "gpu" as "cpu" }), "gpu"],
  ])("%s", async (_, call, name) => {
    const error = await rejected(call());
    expect(error.code, error.message).toBe("INVALID_ARGUMENT");
    expect(error.message).toMatch(name);
  });
});
