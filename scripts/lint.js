// npm run lint: formatting and types. Reports everything before it fails.

const fs = require("node:fs");
const path = require("node:path");
const { ROOT, runTool } = require("./native.js");

const NATIVE = /\.(cc|h|cu|cuh)$/;

function nativeFiles(directory) {
  return fs
    .readdirSync(path.join(ROOT, directory), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && NATIVE.test(entry.name))
    .map((entry) => path.join(entry.parentPath ?? entry.path, entry.name));
}

const checks = [
  () =>
    runTool("clang-format", [
      "--dry-run",
      "--Werror",
      ...nativeFiles("csrc"),
      ...nativeFiles("cuda"),
    ]),
  () => runTool("@biomejs/biome", ["check", "--error-on-warnings", ROOT]),
  () => runTool("typescript", ["--noEmit", "-p", ROOT], "tsc"),
  () => runTool("typescript", ["-p", path.join(ROOT, "test")], "tsc"),
];

for (const check of checks) {
  try {
    check();
  } catch (error) {
    console.error(`lint: ${error.message}`);
    process.exitCode = 1;
  }
}
