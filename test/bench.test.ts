// `npm run bench` as a person runs it: what it writes down. Times are never asserted.

import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, it } from "vitest";

interface Row {
  suite: string;
  impl: string;
  params: Record<string, unknown>;
  us: number;
  gbps?: number;
  tflops?: number;
  floor_us?: number | null;
}

const run = promisify(execFile);
const bench = join(__dirname, "..", "bench", "run.js");
const folder = mkdtempSync(join(tmpdir(), "flash-gqa-bench-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** A quick run on the CPU: its text and the record that it wrote. */
async function quick(...args: string[]) {
  const file = join(folder, `${args.join("").replace(/\W/g, "")}.json`);
  const start = [bench, "--quick", "--device", "cpu", "--json", file, ...args];
  const { stdout, stderr } = await run(process.execPath, start);
  expect(stderr).toBe("");
  return { stdout, record: JSON.parse(readFileSync(file, "utf8")) };
}

describe("the bench", () => {
  it("writes the form of record, with every suite in it", async () => {
    const { stdout, record } = await quick();
    for (const name of ["gpu", "driver", "commit", "command", "date"]) {
      expect(typeof record[name], name).toBe("string");
      expect(record[name].length, name).toBeGreaterThan(0);
    }
    expect(record.command).toMatch(/^npm run bench -- --quick/);
    expect(new Date(record.date).toISOString()).toBe(record.date);
    expect(record.versions.node).toBe(process.versions.node);
    expect(record.ceilings.readGbps).toBeGreaterThan(0);

    const rows: Row[] = record.rows;
    const suites = [
      "decode",
      "prefill",
      "prefill-window",
      "prefill-paged",
      "host",
      "cache",
      "runner",
    ];
    expect([...new Set(rows.map(({ suite }) => suite))]).toEqual(suites);
    for (const row of rows) {
      expect(row.impl).toMatch(/^flash-gqa(-plain)?$/);
      expect(row.us, JSON.stringify(row)).toBeGreaterThan(0);
      if (["host", "cache", "runner"].includes(row.suite)) {
        expect(typeof row.params.operation).toBe("string");
        continue;
      }
      const { batch, numQHeads, numKvHeads, headDim, window, pageSize, dtype } = row.params;
      for (const size of [batch, numQHeads, numKvHeads, headDim]) expect(size).toBeGreaterThan(0);
      for (const size of [window, pageSize]) expect(size).toBeGreaterThanOrEqual(0);
      expect(dtype).toMatch(/^(float32|float16|bfloat16)$/);
      const isDecode = row.suite === "decode";
      expect(isDecode ? row.params.kvLen : row.params.seqLen).toBeGreaterThan(0);
      expect(isDecode ? row.gbps : row.tflops).toBeGreaterThan(0);
      expect(row).toHaveProperty("floor_us");
    }
    // Beside each row with pages, and each decode with a window, stands one without.
    const rowsOf = (impl: string) => rows.filter((row) => row.impl === impl);
    const costly = ({ suite, params }: Row) =>
      Number(params.pageSize) > 0 || (suite === "decode" && Number(params.window) > 0);
    const name = ({ suite, params }: Row) => ({ suite, params });
    const plain = rowsOf("flash-gqa-plain").map(name);
    expect(plain).toEqual(rowsOf("flash-gqa").filter(costly).map(name));
    expect(plain.length).toBeGreaterThan(1);
    for (const part of ["machine", "versions", "ceilings", "peers", "run", ...suites]) {
      expect(stdout).toMatch(new RegExp(`^${part} `, "m"));
    }
    expect(stdout).not.toMatch(/NaN|undefined|Infinity/);
    expect(stdout).toMatch(/^precision is left out: .*CUDA/m);
  });

  it("hands inputs and output to the judge of precision as files that go away", async () => {
    const inBench = createRequire(bench);
    const device = await inBench("flash-gqa").Device.open("cpu");
    const rows = 1023 * 128 * 2;
    let folder = "";
    const peers = {
      ask: async (question: { do: string; folder: string }) => {
        expect(question.do).toBe("precision");
        folder = question.folder;
        const bytes = ["q", "k", "v", "o"].map(
          (name) => statSync(join(folder, `${name}.bin`)).size,
        );
        expect(bytes).toEqual([32 * rows, 8 * rows, 8 * rows, 32 * rows]);
        const error = (rms: number) => ({ rms, max: 0.5 });
        return { errors: { "flash-gqa": error(0.12), cudnn: error(0.11) }, failed: {} };
      },
    };
    const args = { quick: true, rows: 1 };
    const results = [];
    for await (const row of inBench("./precision").precisionResults(device, peers, args)) {
      results.push(...row);
    }
    expect(existsSync(folder)).toBe(false);
    expect(results).toMatchObject([
      { impl: "flash-gqa", rms: 0.12, max: 0.5, runs: 3, equal_runs: 3 },
      { impl: "cudnn", rms: 0.11, max: 0.5 },
    ]);
    const { tableRow } = inBench("./table");
    expect(tableRow(results)).toMatch(/1\.09 +3 of 3 +held$/);
    const [ours, cudnn] = results;
    expect(tableRow([{ ...ours, equal_runs: 2 }, cudnn])).toMatch(/BROKEN$/);
    expect(tableRow([{ ...ours, rms: 0.14 }, cudnn])).toMatch(/BROKEN$/);
    device.dispose();
  });

  it("fills tensors with noise of which no key is one of the queries", async () => {
    const inBench = createRequire(bench);
    const device = await inBench("flash-gqa").Device.open("cpu");
    const { Noise } = inBench("./noise");
    const noise = new Noise(device, 2 ** 12);
    const headDim = 32;
    const [q, k] = [
      noise.tensor([400, headDim], "float32"),
      noise.tensor([300, headDim], "float32"),
    ];
    const rows = async (tensor: typeof q) => {
      const values: number[] = Array.from(await tensor.read());
      return Array.from({ length: values.length / headDim }, (_, i) =>
        values.slice(i * headDim, (i + 1) * headDim),
      );
    };
    const queries = await rows(q);
    let largest = 0;
    for (const key of await rows(k)) {
      for (const query of queries) {
        const dot = key.reduce((sum, x, i) => sum + x * query[i]!, 0);
        largest = Math.max(largest, dot / Math.sqrt(headDim));
      }
    }
    expect(largest).toBeGreaterThan(3);
    expect(largest).toBeLessThan(6); // who meets itself has 5.7 on average, and 8.8 here
    device.dispose();
  });

  it("takes turns there and back, with the product behind them all", async () => {
    const { takeTurns } = createRequire(bench)("./measure");
    const taken: string[] = [];
    const take = async (impl: string) => taken.push(impl);
    await takeTurns(["ours", "product", "cudnn", "fa2"], "product", 3, take);
    expect(taken.join(" ")).toBe(
      "ours cudnn fa2 fa2 cudnn ours ours cudnn fa2 product product product",
    );
    taken.length = 0;
    await takeTurns(["ours"], "product", 2, take);
    expect(taken).toEqual(["ours", "ours"]);
  });

  it("runs the suites and as many rows as asked for", async () => {
    const { record } = await quick("--suite", "cache,decode", "--rows", "1");
    expect(record.rows.map(({ suite }: Row) => suite)).toEqual(["cache", "decode"]);
  });

  it("refuses what it does not know, with a sentence and code 2", async () => {
    for (const args of [
      ["--nonsense"],
      ["--suite", "decoed"],
      ["--rows", "0"],
      ["--device", "x"],
    ]) {
      const failure = await run(process.execPath, [bench, ...args]).catch((error) => error);
      expect(failure.code, args.join(" ")).toBe(2);
      expect(failure.stderr.length).toBeGreaterThan(10);
      expect(failure.stderr).not.toMatch(/^\s+at /m);
    }
  });
});
