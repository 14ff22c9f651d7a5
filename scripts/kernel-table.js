// Registers, shared memory and spills of every kernel, as a table in Markdown, from the log of a verbose build:
//
//   cmake … -DCMAKE_CUDA_FLAGS=-Xptxas=-v && cmake --build … --verbose | tee build.log
//   node scripts/kernel-table.js build.log [launches.csv] > docs/kernel-table.md
//
// Dynamic shared memory is chosen at launch, so ptxas does not know it. launches.csv adds it, for what is launched:
//
//   ncu --clock-control none --csv --metrics launch__shared_mem_per_block_dynamic,launch__block_size \
//     node test/gpu/sanitize.js > launches.csv
//
// Fails where a 16-bit attention kernel of head_dim <= 128 spills.

const { spawnSync } = require("node:child_process");
const fs = require("node:fs");

/** Mangled names -> what a reader wants of them: "attention_fwd_kernel<MmaTraits<__half, 64, 2>>". */
function readable(names) {
  const { stdout, status } = spawnSync("c++filt", { input: names.join("\n"), encoding: "utf8" });
  if (status !== 0) throw new Error("c++filt, of binutils, is needed to read names");
  return stdout.trimEnd().split("\n").map(shorten);
}

function shorten(name) {
  return name
    .replaceAll("(anonymous namespace)::", "")
    .replaceAll("flash_gqa::cuda::", "")
    .replaceAll("flash_gqa::", "")
    .replace(/^void /, "")
    .replace(/\((Route|int|bool)\)/g, "")
    .replace(/\(.*$/, "")
    .replace(/\bfalse\b/g, "0") // as the profiler writes them
    .replace(/\btrue\b/g, "1")
    .replaceAll("> >", ">>");
}

/** One entry for each kernel and architecture that ptxas reports. */
function kernels(log) {
  const found = [];
  let current = null;
  for (const line of log.split("\n")) {
    const entry = line.match(/Compiling entry function '(\S+)' for '(sm_\w+)'/);
    if (entry) {
      current = { mangled: entry[1], arch: entry[2] };
      found.push(current);
    }
    if (current === null) continue;
    const spill = line.match(
      /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill/,
    );
    // Of the kernel itself, not of functions that it calls.
    if (spill && current.stack === undefined) {
      [current.stack, current.stores, current.loads] = spill.slice(1).map(Number);
    }
    const used = line.match(/Used (\d+) registers/);
    if (used) {
      current.registers = Number(used[1]);
      current.shared = Number(line.match(/(\d+) bytes smem/)?.[1] ?? 0);
      current = null;
    }
  }
  const names = readable(found.map(({ mangled }) => mangled));
  return found.map((kernel, i) => ({ ...kernel, name: names[i] }));
}

/** name -> the largest dynamic shared memory and block that it was launched with. */
function launches(csv) {
  const cells = (line) => [...line.matchAll(/"([^"]*)"/g)].map((match) => match[1]);
  const lines = csv.split("\n");
  const first = lines.findIndex((line) => line.startsWith('"ID"'));
  const head = cells(lines[first] ?? "");
  const column = (row, name) => row[head.indexOf(name)];
  const seen = new Map();
  for (const row of lines.slice(first + 1).map(cells)) {
    if (row.length < head.length) continue;
    const name = shorten(column(row, "Kernel Name"));
    const value = Number(column(row, "Metric Value").replaceAll(",", ""));
    const unit = column(row, "Metric Unit").startsWith("K") ? 1000 : 1;
    const entry = seen.get(name) ?? { dynamic: 0, threads: 0 };
    const key = column(row, "Metric Name") === "launch__block_size" ? "threads" : "dynamic";
    entry[key] = Math.max(entry[key], value * unit);
    seen.set(name, entry);
  }
  return seen;
}

function main() {
  const [logFile, csvFile] = process.argv.slice(2);
  const all = kernels(fs.readFileSync(logFile, "utf8"));
  if (all.length === 0) throw new Error(`${logFile} has no report of ptxas: build with -Xptxas=-v`);
  const seen = csvFile === undefined ? new Map() : launches(fs.readFileSync(csvFile, "utf8"));
  all.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const isAttention = ({ name }) => /attention|decode|prefill/.test(name);
  console.log("# Registers, shared memory and spills of each kernel\n");
  console.log(
    "Made by `scripts/kernel-table.js`; its first lines say how. Shared memory in bytes; dynamic: the most of any launch.",
  );
  for (const [title, some] of [
    ["Attention", all.filter(isAttention)],
    ["Everything else", all.filter((kernel) => !isAttention(kernel))],
  ]) {
    console.log(`\n## ${title}\n`);
    console.log("| kernel | arch | registers | static | dynamic | threads | stack | spilled |");
    console.log("|---|---|---|---|---|---|---|---|");
    for (const { name, arch, registers, shared, stack, stores, loads } of some) {
      const { dynamic = "–", threads = "–" } = seen.get(name) ?? {};
      const spilled = stores + loads === 0 ? "0" : `${stores} + ${loads}`;
      const cells = [`\`${name}\``, arch, registers, shared, dynamic, threads, stack, spilled];
      console.log(`| ${cells.join(" | ")} |`);
    }
  }
  const spills = all.filter((kernel) => {
    const [, , headDim] = kernel.name.match(/<(__half|__nv_bfloat16), (\d+)/) ?? [];
    return isAttention(kernel) && Number(headDim) <= 128 && kernel.stores + kernel.loads > 0;
  });
  for (const { name } of spills) console.error(`spills: ${name}`);
  if (spills.length > 0) process.exitCode = 1;
}

main();
