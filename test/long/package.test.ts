// The tarball as a stranger gets it: packed, installed into an empty project with nothing but Node, npm and a shell on
// the path, and used from require, import and TypeScript.

import { execFile } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const run = promisify(execFile);
const root = join(__dirname, "..", "..");
const scratch = mkdtempSync(join(tmpdir(), "flash-gqa-package-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const project = join(scratch, "project");
const bin = join(scratch, "bin");
let tarball = "";
let names: string[] = [];

/** PATH with node, npm and sh only: no compiler, no CMake, no Python. */
function barePath(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: bin, FLASH_GQA_BINARY: "", NODE_PATH: "" };
}

function link(name: string, target: string): void {
  symlinkSync(target, join(bin, name));
}

const npm = (args: string[], cwd: string, env: NodeJS.ProcessEnv = process.env) =>
  run(process.execPath, [npmCli(), ...args], { cwd, env, maxBuffer: 64 << 20 });

function npmCli(): string {
  const beside = join(dirname(process.execPath), "..", "lib/node_modules/npm/bin/npm-cli.js");
  return process.env.npm_execpath?.endsWith(".js") ? process.env.npm_execpath : beside;
}

beforeAll(async () => {
  mkdirSync(bin);
  mkdirSync(project);
  link("node", process.execPath);
  link("sh", "/bin/sh");
  writeFileSync(join(bin, "npm"), `#!/bin/sh\nexec node ${npmCli()} "$@"\n`, { mode: 0o755 });

  // What was built here stands in for the prebuilt binary: it is the same file under its published name.
  const stage = join(scratch, "stage");
  mkdirSync(stage);
  const { files } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  for (const name of [...files, "package.json", "README.md", "LICENSE"]) {
    if (existsSync(join(root, name)))
      cpSync(join(root, name), join(stage, name), { recursive: true });
  }
  const prebuilds = join(stage, "prebuilds", `linux-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  cpSync(join(root, "build/Release/flash_gqa.node"), join(prebuilds, "flash-gqa.glibc.node"));
  const { stdout } = await npm(["pack", "--json", "--ignore-scripts"], stage);
  const [packed] = JSON.parse(stdout);
  tarball = join(stage, packed.filename);
  names = packed.files.map((file: { path: string }) => file.path);

  writeFileSync(join(project, "package.json"), '{ "name": "stranger", "private": true }');
  await npm(["install", tarball, "--no-audit", "--no-fund"], project, barePath());
}, 300_000);

describe("the tarball", () => {
  it("holds what is needed, and neither tests nor models", () => {
    for (const name of [
      "package.json",
      "README.md",
      "LICENSE",
      "dist/index.js",
      "dist/index.d.ts",
      "esm/index.mjs",
      "esm/index.d.mts",
      "CMakeLists.txt",
    ]) {
      expect(names).toContain(name);
    }
    expect(
      names.filter((name) =>
        /^(test|models|bench|lib|\.ci)\/|binding\.gyp|\.safetensors$/.test(name),
      ),
    ).toEqual([]);
  });

  it("has no install script", () => {
    const manifest = JSON.parse(
      readFileSync(join(project, "node_modules/flash-gqa/package.json"), "utf8"),
    );
    for (const name of ["install", "preinstall", "postinstall"])
      expect(manifest.scripts[name]).toBeUndefined();
    expect(manifest.gypfile).toBe(false);
  });
});

const USE = `
  const device = await Device.open("cpu");
  const x = device.tensor(new Float32Array(64).fill(1), [1, 1, 64]);
  const [one] = await attention(x, x, x).o.read();
  const t = add(x, x);
  const [two] = await t.read();
  device.dispose();
  console.log(JSON.stringify({ one, two, llama: typeof Llama.load }));
`;
const WANT = '{"one":1,"two":2,"llama":"function"}\n';

describe("an empty project", () => {
  it("uses it from require", async () => {
    const file = join(project, "use.cjs");
    writeFileSync(
      file,
      `
      const { Device, attention } = require("flash-gqa");
      const { add } = require("flash-gqa/nn");
      const { Llama } = require("flash-gqa/llama");
      (async () => { ${USE} })();
    `,
    );
    expect((await run(process.execPath, [file], { env: barePath() })).stdout).toBe(WANT);
  });

  it("uses it from import", async () => {
    const file = join(project, "use.mjs");
    writeFileSync(
      file,
      `
      import { Device, attention } from "flash-gqa";
      import { add } from "flash-gqa/nn";
      import { Llama } from "flash-gqa/llama";
      ${USE}
    `,
    );
    expect((await run(process.execPath, [file], { env: barePath() })).stdout).toBe(WANT);
  });

  it("gets the same names, and the same classes, from both", async () => {
    const file = join(project, "same.mjs");
    writeFileSync(
      file,
      `
      import { createRequire } from "node:module";
      const require = createRequire(import.meta.url);
      const differ = [];
      for (const entry of ["flash-gqa", "flash-gqa/nn", "flash-gqa/llama"]) {
        const cjs = require(entry);
        const esm = await import(entry);
        const keys = (x) => Object.keys(x).filter((k) => k !== "default").sort();
        if (keys(cjs).join() !== keys(esm).join()) differ.push([entry, keys(cjs), keys(esm)]);
        for (const key of keys(cjs)) if (cjs[key] !== esm[key]) differ.push([entry, key]);
      }
      console.log(JSON.stringify(differ));
    `,
    );
    expect((await run(process.execPath, [file], { env: barePath() })).stdout).toBe("[]\n");
  });

  it("installs again from its lockfile", async () => {
    await npm(["ci", "--no-audit", "--no-fund"], project, barePath());
    const { stdout } = await run(process.execPath, [join(project, "use.cjs")], { env: barePath() });
    expect(stdout).toBe(WANT);
  });

  it("compiles against its types under each module resolution", async () => {
    const source = `
      import { attention, Device, GqaError, type Tensor } from "flash-gqa";
      import { linear } from "flash-gqa/nn";
      import { Llama } from "flash-gqa/llama";
      export async function use(): Promise<Tensor> {
        const device = await Device.open();
        const x: Tensor = device.zeros([1, 1, 64]);
        const { o } = attention(x, x, x, { window: 4 });
        const model = await Llama.load("nowhere", { device });
        for await (const part of model.generate("a", { maxTokens: 1 })) console.log(part.text);
        return linear(o.reshape([1, 64]), x.reshape([1, 64]));
      }
      // @ts-expect-error: a name that does not exist
      attention(0 as unknown as Tensor, 0 as unknown as Tensor, 0 as unknown as Tensor, { windwo: 1 });
      export const isOurs = (error: unknown) => error instanceof GqaError && error.code === "BUSY";
    `;
    writeFileSync(join(project, "use.mts"), source);
    writeFileSync(join(project, "use.cts"), source);
    const types = join(project, "node_modules", "@types");
    mkdirSync(types, { recursive: true });
    cpSync(join(root, "node_modules/@types/node"), join(types, "node"), { recursive: true });
    cpSync(join(root, "node_modules/undici-types"), join(project, "node_modules/undici-types"), {
      recursive: true,
    });
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    const base = ["--noEmit", "--strict", "--target", "es2022", "--types", "node"];
    for (const [resolution, module] of [
      ["node16", "node16"],
      ["bundler", "esnext"],
    ] as const) {
      const args = [
        tsc,
        ...base,
        "--module",
        module,
        "--moduleResolution",
        resolution,
        "use.mts",
        "use.cts",
      ];
      const { stdout } = await run(process.execPath, args, { cwd: project }).catch(
        (error) => error,
      );
      expect(stdout, resolution).toBe("");
    }
  });
});

describe("without a binary", () => {
  it("says what was looked for, and how to cure it", async () => {
    const bare = join(scratch, "bare");
    cpSync(join(project, "node_modules"), join(bare, "node_modules"), { recursive: true });
    rmSync(join(bare, "node_modules/flash-gqa/prebuilds"), { recursive: true });
    const script =
      'try { require("flash-gqa"); } catch (e) { console.log(e.code + "|" + e.message); }';
    const { stdout } = await run(process.execPath, ["-e", script], { cwd: bare, env: barePath() });
    expect(stdout).toMatch(/^NATIVE_LOAD\|/);
    expect(stdout).toContain("prebuilds");
    expect(stdout).toContain("cmake-js");
  });
});
