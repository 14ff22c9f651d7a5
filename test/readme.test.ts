// The README's examples run as they stand.

import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, it } from "vitest";
import { deviceName } from "./support/device";

const run = promisify(execFile);
const root = join(__dirname, "..");
const readme = readFileSync(join(root, "README.md"), "utf8");
const examples = [...readme.matchAll(/```js\n([\s\S]*?)```/g)].map((match) => match[1]!);

const project = mkdtempSync(join(tmpdir(), "flash-gqa-readme-"));
afterAll(() => rmSync(project, { recursive: true }));
mkdirSync(join(project, "node_modules"));
symlinkSync(root, join(project, "node_modules", "flash-gqa"));
symlinkSync(join(root, "models"), join(project, "models"));

describe("the README", () => {
  it.each(examples.map((code, i) => [i + 1, code] as const))("example %i runs", async (i, code) => {
    const file = join(project, `example-${i}.mjs`);
    writeFileSync(file, code);
    const env = { ...process.env, FLASH_GQA_DEVICE: deviceName };
    const { stdout, stderr } = await run(process.execPath, [file], { cwd: project, env });
    expect(stdout.length).toBeGreaterThan(10);
    expect(stdout).not.toMatch(/NaN|undefined/);
    expect(stderr).toBe("");
  });

  it("and the examples folder run too", async () => {
    for (const name of ["attention.js", "decode-loop.js"]) {
      const env = { ...process.env, FLASH_GQA_DEVICE: deviceName };
      const { stdout, stderr } = await run(process.execPath, [join(root, "examples", name)], {
        env,
      });
      expect(stdout.length, name).toBeGreaterThan(20);
      expect(stderr, name).toBe("");
    }
  });

  it("names files that exist", () => {
    for (const text of [
      readme,
      ...["principles", "conventions"].map((name) =>
        readFileSync(join(root, "docs", `${name}.md`), "utf8"),
      ),
    ]) {
      for (const [, target] of text.matchAll(/\]\(([^)#]+)\)/g)) {
        if (/^https?:/.test(target!)) continue;
        const places = [join(root, target!), join(root, "docs", target!)];
        expect(
          places.some((place) => exists(place)),
          target,
        ).toBe(true);
      }
    }
  });
});

function exists(path: string): boolean {
  try {
    readFileSync(path);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EISDIR";
  }
}
