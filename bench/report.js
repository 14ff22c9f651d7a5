// What a run says beside its tables: the header, the sums, and the JSON of record.

const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const path = require("node:path");
const { rowName } = require("./cases");

const ROOT = path.join(__dirname, "..");

function ask(command, ...args) {
  try {
    const output = execFileSync(command, args, { cwd: ROOT, stdio: ["ignore", "pipe", "ignore"] });
    return output.toString().trim().split("\n")[0];
  } catch {
    return "";
  }
}

/** Of the tree that runs; FLASH_GQA_COMMIT names it where the sources travelled without their history. */
function commit() {
  if (process.env.FLASH_GQA_COMMIT) return process.env.FLASH_GQA_COMMIT;
  const id = ask("git", "rev-parse", "--short=12", "HEAD");
  if (id === "") return "unknown";
  return ask("git", "status", "--porcelain", "--untracked-files=no") === "" ? id : `${id}+changes`;
}

/** Everything of the record but its rows. `peers` is what their process said of itself, or null. */
function describeRun(device, peers, ceilings) {
  const info = device.info();
  const cuda = device.kind === "cuda";
  const driver = cuda
    ? ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") ||
      String(info.driverVersion)
    : "none";
  const { version } = JSON.parse(fs.readFileSync(path.join(ROOT, "package.json"), "utf8"));
  const versions = { "flash-gqa": version, node: process.versions.node };
  if (cuda) versions.cudaRuntime = String(info.runtimeVersion);
  if (peers !== null) Object.assign(versions, { torch: peers.torch, cudnn: peers.cudnn });
  return {
    gpu: info.name,
    driver,
    versions,
    commit: commit(),
    command: ["npm run bench --", ...process.argv.slice(2)].join(" "),
    date: new Date().toISOString(),
    machine: { kind: device.kind, arch: info.arch, parallelism: info.parallelism },
    ceilings,
  };
}

function headerLines(run, peersMissing) {
  const { ceilings } = run;
  const versions = Object.entries(run.versions).map((pair) => pair.join(" "));
  const limits = Object.entries(ceilings)
    .filter(([, value]) => typeof value === "number")
    .map(([name, value]) =>
      name === "readGbps"
        ? `read ${value.toFixed(0)} GB/s`
        : `${name} ${value.toPrecision(3)} TFLOP/s`,
    );
  return [
    `machine   ${run.gpu} (${run.machine.arch}, ${run.machine.parallelism} wide), driver ${run.driver}`,
    `versions  ${versions.join(", ")}, commit ${run.commit}`,
    `ceilings  ${limits.join(", ")} (${ceilings.from})`,
    `peers     ${peersMissing ?? "cuDNN and FlashAttention-2 through PyTorch SDPA, interleaved by round"}`,
    `run       ${run.date}, ${run.command}`,
  ];
}

/** Our time over cuDNN's over the rows that both ran: the geometric mean, and the worst row. */
function summary(suite, rows) {
  const key = ({ params }) => JSON.stringify(params);
  const inSuite = rows.filter((row) => row.suite === suite && row.us !== undefined);
  const ours = new Map(
    inSuite.filter(({ impl }) => impl === "flash-gqa").map((row) => [key(row), row.us]),
  );
  const ratios = inSuite
    .filter(({ impl }) => impl === "cudnn")
    .map((row) => ({ row, ratio: ours.get(key(row)) / row.us }));
  if (ratios.length === 0) return null;
  const logs = ratios.map(({ ratio }) => Math.log(ratio));
  const mean = Math.exp(logs.reduce((sum, log) => sum + log, 0) / logs.length);
  const worst = ratios.reduce((a, b) => (b.ratio > a.ratio ? b : a));
  return (
    `our time over cuDNN's: geometric mean ${mean.toFixed(3)} (${ratios.length} rows), ` +
    `worst ${worst.ratio.toFixed(2)} (${rowName(worst.row)})`
  );
}

/** bench/results/nvidia-h100-80gb-hbm3-2026-11-22.json */
function recordPath(run) {
  const name = run.gpu.toLowerCase().replace(/[^a-z0-9]+/g, "-");
  return path.join(__dirname, "results", `${name}-${run.date.slice(0, 10)}.json`);
}

function writeJson(file, run, rows) {
  const list = rows.map((row) => `    ${JSON.stringify(row)}`).join(",\n");
  const head = JSON.stringify(run, null, 2).slice(0, -2);
  fs.writeFileSync(file, `${head},\n  "rows": [\n${list}\n  ]\n}\n`);
}

module.exports = {
  describeRun,
  headerLines,
  recordPath,
  summary,
  writeJson,
};
