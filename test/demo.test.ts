// `npm run demo` as a person runs it: a process of its own, its text and its figures.

import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { deviceName } from "./support/device";

const run = promisify(execFile);
const demo = join(__dirname, "..", "examples", "demo.js");
const start = (...args: string[]) =>
  run(process.execPath, [demo, "--device", deviceName, ...args], { encoding: "utf8" });

describe("the demo", () => {
  it("writes text and says what it did", async () => {
    const { stdout } = await start("--tokens", "24", "--temperature", "0");
    expect(stdout.length).toBeGreaterThan(80);
    expect(stdout).toMatch(/prefill.*\d.*token/is);
    expect(stdout).toMatch(/decode.*\d.*token/is);
    expect(stdout).toMatch(new RegExp(deviceName === "cpu" ? "cpu" : "cuda"));
    expect(stdout).toMatch(/page/);
    expect(stdout).toMatch(/window/);
    expect(stdout).not.toMatch(/NaN|undefined|Infinity/);
  });

  it("writes the same for the same seed", async () => {
    const text = async (seed: string) => {
      const { stdout } = await start("--tokens", "16", "--seed", seed, "--prompt", "And God said");
      return stdout
        .slice(0, stdout.search(/prefill/i))
        .replace(/[^\n]*\d+ ?(ms|MB|s)\b[^\n]*/g, "");
    };
    const first = await text("4");
    expect(await text("4")).toBe(first);
    expect(await text("5")).not.toBe(first);
  });

  it("refuses what it does not know, with a sentence and code 2", async () => {
    for (const args of [["--nonsense"], ["--tokens", "-1"], ["--device", "gpu"], ["--seed", "x"]]) {
      const failure = await run(process.execPath, [demo, ...args]).catch((error) => error);
      expect(failure.code, args.join(" ")).toBe(2);
      expect(failure.stderr.length).toBeGreaterThan(10);
      expect(failure.stderr).not.toMatch(/^\s+at /m);
    }
  });
});
