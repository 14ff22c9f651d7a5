// npm run prebuild: prebuilds/<platform>-<arch>/flash-gqa.<libc>.node, for every architecture that the package ships.

const path = require("node:path");
const { runTool } = require("./native.js");

process.env.FLASH_GQA_CUDA ??= "on";
process.env.FLASH_GQA_CUDA_ARCHS ??= "80-real;80-virtual;90a-real;100-real;120-real";

// --strip and --tag-libc: a musl system must find nothing rather than a binary that crashes.
runTool("prebuildify", [
  "--napi",
  "--strip",
  "--tag-libc",
  "--node-gyp",
  path.join(__dirname, "gyp-shim.js"),
]);
