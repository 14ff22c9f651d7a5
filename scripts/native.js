// The native build, shared by build.js, prepare.js and gyp-shim.js: through cmake-js, and not at all where nothing
// changed.

const { spawnSync } = require("node:child_process");
const { createHash } = require("node:crypto");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const ROOT = path.join(__dirname, "..");
const OUTPUT = path.join(ROOT, "build", "Release");
const BINARY = path.join(OUTPUT, "flash_gqa.node");
const BUILD = path.join(ROOT, "build", "cmake");
const STAMP = path.join(ROOT, "build", "stamp.json");

function run(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { cwd: ROOT, stdio: "inherit", ...options });
  if (error) throw error;
  if (status !== 0)
    throw new Error(`${path.basename(command)} ${args[0] ?? ""} failed (exit ${status})`);
}

/** Runs a command-line program of an installed package with this Node. */
function runTool(name, args, program = path.basename(name)) {
  const manifest = require.resolve(`${name}/package.json`, { paths: [ROOT] });
  const { bin } = JSON.parse(fs.readFileSync(manifest, "utf8"));
  const file = typeof bin === "string" ? bin : bin[program];
  run(process.execPath, [path.join(path.dirname(manifest), file), ...args]);
}

function hasPackage(name) {
  try {
    require.resolve(`${name}/package.json`, { paths: [ROOT] });
    return true;
  } catch {
    return false;
  }
}

function sourceFiles() {
  const files = [path.join(ROOT, "CMakeLists.txt")];
  const visit = (directory) => {
    for (const entry of fs.readdirSync(directory, { withFileTypes: true })) {
      const file = path.join(directory, entry.name);
      if (entry.isDirectory()) visit(file);
      else files.push(file);
    }
  };
  for (const directory of ["cmake", "csrc", "cuda"]) visit(path.join(ROOT, directory));
  return files.sort();
}

function hashSources() {
  const hash = createHash("sha256");
  for (const file of sourceFiles()) {
    hash.update(`${path.relative(ROOT, file)}\0`);
    hash.update(createHash("sha256").update(fs.readFileSync(file)).digest());
  }
  return hash.digest("hex");
}

/** The nvcc that CMake would find: a new one must lead to a new configuration. */
function findNvcc() {
  const { CUDACXX, CUDA_HOME, CUDA_PATH, PATH = "" } = process.env;
  const directories = [CUDA_HOME, CUDA_PATH, "/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda"]
    .filter(Boolean)
    .map((directory) => path.join(directory, "bin"));
  const files = [...PATH.split(":"), ...directories].map((directory) =>
    path.join(directory, "nvcc"),
  );
  return [CUDACXX, ...files].find((file) => file && fs.existsSync(file)) ?? "";
}

/** This machine's GPUs, "90a;80", or what most machines have. */
function defaultArchs() {
  const query = ["--query-gpu=compute_cap", "--format=csv,noheader"];
  const { status, stdout } = spawnSync("nvidia-smi", query, { encoding: "utf8", timeout: 10_000 });
  const found = status === 0 ? (stdout.match(/^\d+\.\d+$/gm) ?? []) : [];
  const archs = new Set(found.map((text) => text.replace(".", "")));
  if (archs.size === 0) return "80;90a";
  return [...archs].map((arch) => (arch === "90" ? "90a" : arch)).join(";");
}

function buildOptions() {
  const { FLASH_GQA_CUDA, FLASH_GQA_CUDA_ARCHS, FLASH_GQA_SANITIZE, CC, CXX } = process.env;
  const nvcc = findNvcc();
  return {
    cuda: FLASH_GQA_CUDA || "auto",
    archs: FLASH_GQA_CUDA_ARCHS || (nvcc === "" ? "80;90a" : defaultArchs()),
    sanitize: FLASH_GQA_SANITIZE || "",
    nvcc,
    compilers: [CC ?? "", CXX ?? ""],
    napi: process.versions.napi,
  };
}

function readStamp() {
  try {
    return JSON.parse(fs.readFileSync(STAMP, "utf8"));
  } catch {
    return {};
  }
}

/** Builds build/Release/flash_gqa.node. Returns false where it was up to date. */
function buildNative() {
  const options = JSON.stringify(buildOptions());
  const sources = hashSources();
  const stamp = readStamp();
  if (stamp.options === options && stamp.sources === sources && fs.existsSync(BINARY)) return false;

  const { cuda, archs, sanitize } = JSON.parse(options);
  const common = [
    "--directory",
    ROOT,
    "--out",
    BUILD,
    "--config",
    "Release",
    "--log-level",
    "warn",
  ];
  if (stamp.options !== options) {
    // CMake caches compilers and what it searched for: other options start from nothing.
    fs.rmSync(BUILD, { recursive: true, force: true });
    runTool("cmake-js", [
      "configure",
      ...common,
      `--CDFLASH_GQA_CUDA=${cuda}`,
      `--CDFLASH_GQA_CUDA_ARCHS=${archs}`,
      `--CDFLASH_GQA_SANITIZE=${sanitize}`,
      `--CDFLASH_GQA_OUTPUT_DIR=${OUTPUT}`,
    ]);
    fs.writeFileSync(STAMP, JSON.stringify({ options }));
  }
  runTool("cmake-js", ["build", ...common, "--parallel", String(os.availableParallelism())]);
  fs.writeFileSync(STAMP, JSON.stringify({ options, sources }));
  return true;
}

module.exports = { ROOT, BINARY, buildNative, hasPackage, run, runTool };
