// npm run bench: where attention stands on this machine, beside its limits and beside PyTorch.

const fs = require("node:fs");
const path = require("node:path");
const { parseArgs } = require("node:util");
const { KERNEL_SUITES } = require("./cases");

const SUITES = [...KERNEL_SUITES, "precision", "host", "cache", "runner"];

const USAGE = `npm run bench -- [options]

  --device NAME   auto, cpu, cuda or cuda:N               (default: auto)
  --suite A,B     of ${SUITES.join(", ")}
                                                          (default: all)
  --rows N        the first N rows of each suite
  --quick         few and short rounds, small cases
  --no-peers      do not start PyTorch
  --json FILE     write the results there
  --record        write them to bench/results/<gpu>-<date>.json
  --help`;

const OPTIONS = {
  device: { type: "string", default: "auto" },
  suite: { type: "string", default: SUITES.join(",") },
  rows: { type: "string" },
  quick: { type: "boolean", default: false },
  "no-peers": { type: "boolean", default: false },
  json: { type: "string" },
  record: { type: "boolean", default: false },
  help: { type: "boolean", default: false },
};

class UsageError extends Error {}

function readArguments() {
  let values;
  try {
    ({ values } = parseArgs({ options: OPTIONS }));
  } catch (error) {
    throw new UsageError(error.message);
  }
  const suites = values.suite.split(",");
  const unknown = suites.find((suite) => !SUITES.includes(suite));
  if (unknown !== undefined) {
    throw new UsageError(`--suite expected some of ${SUITES.join(", ")}, got "${unknown}"`);
  }
  if (!/^(auto|cpu|cuda(:\d{1,3})?)$/.test(values.device)) {
    throw new UsageError(`--device expected auto, cpu, cuda or cuda:N, got "${values.device}"`);
  }
  const rows = values.rows === undefined ? Number.POSITIVE_INFINITY : Number(values.rows);
  if (rows !== Number.POSITIVE_INFINITY && !(Number.isInteger(rows) && rows > 0)) {
    throw new UsageError(`--rows expected a whole number above 0, got "${values.rows}"`);
  }
  if (values.json !== undefined && !fs.existsSync(path.dirname(path.resolve(values.json)))) {
    throw new UsageError(`--json expected a path in a folder that is there, got "${values.json}"`);
  }
  return { ...values, suites, rows };
}

async function* suiteResults(device, suite, noise, peers, ceilings, args) {
  if (KERNEL_SUITES.includes(suite)) {
    const { kernelResults } = require("./kernels");
    yield* kernelResults(device, suite, noise, peers, ceilings, args);
    return;
  }
  if (suite === "precision") {
    yield* require("./precision").precisionResults(device, peers, args);
    return;
  }
  const { cacheRows } = require("./cache");
  const { hostRows } = require("./host");
  const { runnerRows } = require("./runner");
  const rowsOf = { host: hostRows, cache: cacheRows, runner: runnerRows }[suite];
  let left = args.rows;
  for await (const row of rowsOf(device, args.quick)) {
    yield [row];
    if (--left === 0) return;
  }
}

async function startPeers(device, args) {
  if (args["no-peers"]) return { peers: null, info: null, missing: "not asked" };
  if (device.kind !== "cuda") return { peers: null, info: null, missing: "they run on CUDA only" };
  const { peers, info, reason } = await require("./peers").Peers.start();
  if (peers === undefined) return { peers: null, info: null, missing: `none, ${reason}` };
  return { peers, info };
}

async function main() {
  const args = readArguments();
  if (args.help) return console.log(USAGE);
  const { Device } = require("flash-gqa");
  const { ownCeilings } = require("./ceilings");
  const { Noise } = require("./noise");
  const report = require("./report");
  const { tableHead, tableRow } = require("./table");

  const device = await Device.open(args.device);
  const { peers, info, missing } = await startPeers(device, args);
  const noise = new Noise(device, 2 ** (args.quick ? 12 : 20));
  const ceilings = await ownCeilings(device, noise, args.quick);
  if (peers !== null) {
    Object.assign(ceilings, await peers.ask({ do: "ceilings" }), { from: "PyTorch sum, matmul" });
  }
  const run = report.describeRun(device, info, ceilings);
  for (const line of report.headerLines(run, missing)) console.log(line);

  const files = [args.json, args.record ? report.recordPath(run) : undefined].filter(Boolean);
  const rows = [];
  for (const suite of args.suites) {
    if (suite === "precision" && peers === null) {
      console.log(`\n${suite} is left out: it needs the peers, ${missing}`);
      continue;
    }
    console.log(tableHead(suite));
    for await (const results of suiteResults(device, suite, noise, peers, ceilings, args)) {
      rows.push(...results);
      console.log(tableRow(results));
    }
    const mean = report.summary(suite, rows);
    if (mean !== null) console.log(mean);
    // After each suite: a run that is stopped keeps what it has measured.
    for (const file of files) report.writeJson(file, run, rows);
  }
  peers?.stop();
  for (const file of files) console.log(`\nwritten to ${file}`);
  device.dispose();
}

main().catch((error) => {
  if (error instanceof UsageError) {
    console.error(`${error.message}\n\n${USAGE}`);
    process.exitCode = 2;
    return;
  }
  console.error(error.name === "GqaError" ? error.message : error);
  process.exit(1); // the peers' process would keep this one alive
});
