// npm run build: the addon, in build/Release.

const { BINARY, buildNative } = require("./native.js");

try {
  console.log(buildNative() ? `flash-gqa: built ${BINARY}` : `flash-gqa: ${BINARY} is up to date`);
} catch (error) {
  console.error(`flash-gqa: the native build failed: ${error.message}`);
  console.error("It needs CMake 3.22, a C++20 compiler (g++ 12 or clang 14) and, for CUDA, nvcc.");
  process.exitCode = 1;
}
