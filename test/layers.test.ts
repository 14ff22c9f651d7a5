// The rules of the house (docs/principles.md), held by a machine: who may include what, and how big a file may grow.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";

const root = join(__dirname, "..");
const SOURCE = /\.(ts|mts|cts|js|mjs|cjs|cc|cpp|h|cu|cuh)$/;

/** Tracked files and those about to be: what the repository would hold. */
function repositoryFiles(): string[] {
  const git = spawnSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], {
    cwd: root,
    encoding: "utf8",
    maxBuffer: 64 << 20,
  });
  if (git.status !== 0) throw new Error(`git ls-files: ${git.stderr}`);
  return [...new Set(git.stdout.split("\0"))].filter((name) => name !== "" && exists(name));
}

function exists(name: string): boolean {
  try {
    readFileSync(join(root, name));
    return true;
  } catch {
    return false;
  }
}

const inGit = spawnSync("git", ["rev-parse"], { cwd: root }).status === 0;
const files = inGit ? repositoryFiles() : [];
const sources = files.filter((name) => SOURCE.test(name));
const read = (name: string) => readFileSync(join(root, name), "utf8");
const within = (...folders: string[]) =>
  sources.filter((name) => folders.some((folder) => name.startsWith(folder)));

const COMMENT = "\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?\\*\\/";
const STRING = "\"(?:\\\\.|[^\"\\\\\\n])*\"|'(?:\\\\.|[^'\\\\\\n])*'|`(?:\\\\.|[^`\\\\])*`";

/** The text without some of its comments and string literals, lines kept. */
function strip(text: string, drop: (match: string) => boolean): string {
  const lexer = new RegExp(`${COMMENT}|${STRING}`, "g");
  return text.replace(lexer, (match) => (drop(match) ? match.replace(/[^\n]/g, "") : match));
}

const isComment = (match: string) => match.startsWith("//") || match.startsWith("/*");
const code = (text: string) => strip(text, () => true);
/** A long string stands alone on its line: no formatter can break it. */
const withoutStrings = (text: string) => strip(text, (match) => !isComment(match));

/** "file:line: text" of every line of code that matches. */
function offences(
  names: string[],
  pattern: RegExp,
  text: (name: string) => string = (n) => code(read(n)),
) {
  return names.flatMap((name) =>
    text(name)
      .split("\n")
      .flatMap((line, i) => (pattern.test(line) ? [`${name}:${i + 1}: ${line.trim()}`] : [])),
  );
}

// The packed tarball and a copied tree have no git: there is nothing to hold then.
describe.skipIf(!inGit)("layers", () => {
  it("cuda/ knows nothing of Node, allocates nothing, prints nothing, ends nothing", () => {
    const cuda = within("cuda/");
    expect(
      offences(
        cuda,
        /#\s*include\s*[<"](napi|node_api|uv\.h|csrc|\.\.\/csrc|iostream|cstdio)/,
        read,
      ),
    ).toEqual([]);
    const forbidden = [
      ...["printf", "fprintf", "puts", "malloc", "calloc", "realloc", "free", "exit", "abort"],
      ...["cudaMalloc\\w*", "cudaFree\\w*", "cuda(Device|Stream|Event)Synchronize"],
    ];
    const calls = new RegExp(`\\b(${forbidden.join("|")})\\s*\\(`);
    expect(offences(cuda, calls)).toEqual([]);
    expect(offences(cuda, /std::(cout|cerr)/)).toEqual([]);
  });

  it("csrc/ launches no kernel", () => {
    expect(offences(within("csrc/"), /<<</)).toEqual([]);
  });

  it("only csrc/binding knows Node-API; the CPU back end does not know the binding", () => {
    const below = within("csrc/").filter(
      (name) => !name.startsWith("csrc/binding/") && name !== "csrc/addon.cc",
    );
    expect(offences(below, /#\s*include\s*[<"](napi|node_api|uv\.h|.*binding\/)/, read)).toEqual(
      [],
    );
  });

  it("in lib/ only load.ts finds the addon, and only lib/native/ takes it from there", () => {
    const others = within("lib/").filter((name) => name !== "lib/load.ts");
    expect(offences(others, /node-gyp-build|require\(.*\.node\b/, read)).toEqual([]);
    const outside = others.filter((name) => !name.startsWith("lib/native"));
    expect(offences(outside, /from\s+["'](\.\.?\/)+load["']/, read)).toEqual([]);
  });

  it("lib/ops and lib/cache import nothing from nn and llama, nor nn from llama", () => {
    const base = within("lib/ops/", "lib/cache/");
    expect(offences(base, /from\s+["'][^"']*(\/nn|\/llama)/, read)).toEqual([]);
    expect(offences(within("lib/nn/"), /from\s+["'][^"']*\/llama/, read)).toEqual([]);
  });

  it("lib/llama stands on the public API", () => {
    expect(offences(within("lib/llama/"), /from\s+["']\.\.\/(native|load)["']/, read)).toEqual([]);
  });

  it("window arithmetic is written once for each language", () => {
    const allowed = ["cuda/mask.h", "lib/window.ts"];
    const arithmetic = /\bwindow\b(_?\w*)?\s*[-+]\s*\w|\w\s*[-+]\s*(\w+[.>-]+)?\bwindow\b/;
    const native = within("cuda/", "csrc/").filter((name) => !allowed.includes(name));
    expect(offences(native, arithmetic)).toEqual([]);
    const typescript = within("lib/").filter((name) => !allowed.includes(name));
    const places = new Set(offences(typescript, arithmetic).map((o) => o.split(":")[0]));
    expect([...places].length, `window arithmetic in ${[...places]}`).toBeLessThanOrEqual(1);
  });

  it("no file of source is longer than 400 lines", () => {
    const long = sources
      .map((name) => [name, read(name).split("\n").length - 1] as const)
      .filter(([, lines]) => lines > 400);
    expect(long).toEqual([]);
  });

  it("lines of code keep to 100 columns, comments to 120", () => {
    // A macro's backslashes stand in one column, which may be further out.
    const unbroken = (name: string) => code(read(name)).replace(/[ \t]*\\?$/gm, "");
    expect(offences(sources, /^.{101}/u, unbroken)).toEqual([]);
    expect(offences(sources, /^.{121}/u, (name) => withoutStrings(read(name)))).toEqual([]);
  });

  it("nothing is left over: no TODO, no test that runs alone or not at all", () => {
    const names = sources.filter((name) => name !== "test/layers.test.ts");
    expect(offences(names, /\b(TODO|FIXME|XXX|HACK)\b/, read)).toEqual([]);
    expect(offences(within("test/"), /\b(it|test|describe)\.(only|skip)\(/)).toEqual([]);
  });

  it("no path of one machine and no registry host", () => {
    const text = files.filter((name) =>
      /\.(ts|mts|js|mjs|cc|h|cu|cuh|json|md|txt|gyp|sh)$|^\.ci\/|CMake/.test(name),
    );
    const names = text.filter((name) => !/golden|models\/|layers\.test\.ts$/.test(name));
    const machine = /(^|[\s"'`(=])\/(work|farm|home\/\w+|root|Users)\//;
    expect(offences(names, machine, read)).toEqual([]);
    expect(offences(names, /https?:\/\/[a-z.]*(registry|mirror)[a-z.]*\//, read)).toEqual([]);
  });
});

describe("the shared headers", () => {
  const folder = mkdtempSync(join(tmpdir(), "flash-gqa-headers-"));
  afterAll(() => rmSync(folder, { recursive: true }));
  const headers = ["params.h", "mask.h", "softmax.h", "kv_source.h", "nn_params.h"];

  function find(...names: string[]): string | undefined {
    return names.find((name) => spawnSync(name, ["--version"]).status === 0);
  }

  const compilers = [
    ["g++", find("g++")],
    ["clang", find("clang++", "clang++-14", "clang++-15", "clang++-16", "clang++-18")],
  ] as const;

  for (const [name, compiler] of compilers) {
    it.skipIf(!compiler)(
      `compile as plain C++20 with ${name}${compiler ? "" : " (not installed)"}`,
      () => {
        for (const header of headers) {
          // Twice: the guard; alone: its own includes.
          const source = join(
            folder,
            `${basename(header, ".h")}_${name === "g++" ? "gcc" : name}.cc`,
          );
          const include = `#include "${join(root, "cuda", header)}"\n`;
          writeFileSync(source, include + include);
          const flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"];
          execFileSync(compiler!, [...flags, source], { stdio: "pipe" });
        }
      },
    );
  }
});
