// The native build, shared by compile.js, prepare.js and gyp-shim.js: through cmake-js, and not at all where nothing
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
const STAMP = path.join(ROOT, "build", "native.json");

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

/** The files named, and all files below the directories named, relative to the root. */
function filesBelow(names) {
  const files = [];
  const visit = (name) => {
    if (!fs.statSync(path.join(ROOT, name)).isDirectory()) files.push(name);
    else for (const entry of fs.readdirSync(path.join(ROOT, name))) visit(path.join(name, entry));
  };
  names.forEach(visit);
  return files.sort();
}

function hashFiles(names) {
  const hash = createHash("sha256");
  for (const file of filesBelow(names)) {
    const contents = createHash("sha256").update(fs.readFileSync(path.join(ROOT, file)));
    hash.update(`${file}\0${contents.digest("hex")}\0`);
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
  const cuda = FLASH_GQA_CUDA || "auto";
  const nvcc = cuda === "off" ? "" : findNvcc();
  return {
    cuda,
    archs: nvcc === "" ? "" : FLASH_GQA_CUDA_ARCHS || defaultArchs(),
    sanitize: FLASH_GQA_SANITIZE || "",
    nvcc,
    compilers: [CC ?? "", CXX ?? ""],
    napi: process.versions.napi,
  };
}

/** What a stamp file says about the last build; {} where there was none. */
function readStamp(file) {
  try {
    return JSON.parse(fs.readFileSync(file, "utf8"));
  } catch {
    return {};
  }
}

/** Builds build/Release/flash_gqa.node. Returns false where it was up to date. */
function buildNative() {
  const options = JSON.stringify(buildOptions());
  const sources = hashFiles(["CMakeLists.txt", "cmake", "csrc", "cuda"]);
  const stamp = readStamp(STAMP);
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
      ...(archs === "" ? [] : [`--CDFLASH_GQA_CUDA_ARCHS=${archs}`]),
      `--CDFLASH_GQA_SANITIZE=${sanitize}`,
      `--CDFLASH_GQA_OUTPUT_DIR=${OUTPUT}`,
    ]);
    fs.writeFileSync(STAMP, JSON.stringify({ options }));
  }
  runTool("cmake-js", ["build", ...common, "--parallel", String(os.availableParallelism())]);
  fs.writeFileSync(STAMP, JSON.stringify({ options, sources }));
  return true;
}

/** Compiles lib/ to dist/. Returns false where it was up to date. */
function buildTypeScript() {
  const stamp = path.join(ROOT, "build", "typescript.json");
  const sources = hashFiles(["lib", "tsconfig.json", "package-lock.json"]);
  const built = fs.existsSync(path.join(ROOT, "dist", "index.js"));
  if (built && readStamp(stamp).sources === sources) return false;
  runTool("typescript", ["-p", ROOT], "tsc");
  fs.writeFileSync(stamp, JSON.stringify({ sources }));
  return true;
}

module.exports = { ROOT, BINARY, buildNative, buildTypeScript, hasPackage, runTool };
