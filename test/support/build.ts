// Worker threads and child processes run what is built: dist/ is brought up to date once, before the tests, where a
// source is newer. A fresh install has just built it.

import { execFileSync } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";

const root = join(__dirname, "..", "..");

function newest(folder: string): number {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true });
  const times = entries.map((entry) =>
    entry.isFile() ? statSync(join(entry.parentPath, entry.name)).mtimeMs : 0,
  );
  return Math.max(0, ...times);
}

function builtAt(): number {
  try {
    return newest(join(root, "dist"));
  } catch {
    return 0;
  }
}

export default function setup(): void {
  if (builtAt() > newest(join(root, "lib"))) return;
  execFileSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", root], {
    cwd: root,
    stdio: "inherit",
  });
}
