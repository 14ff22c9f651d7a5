// npm run compile: the addon in build/Release, and lib/ compiled to dist/. Not called "build": npm would run
// "prebuild" before it, which makes the package's binaries for every architecture.

const { BINARY, buildNative, buildTypeScript } = require("./native.js");

try {
  console.log(buildNative() ? `flash-gqa: built ${BINARY}` : `flash-gqa: ${BINARY} is up to date`);
} catch (error) {
  console.error(`flash-gqa: the native build failed: ${error.message}`);
  console.error("It needs CMake 3.22, a C++20 compiler (g++ 12 or clang 14) and, for CUDA, nvcc.");
  process.exit(1);
}
// node-gyp's action wants the addon alone.
if (process.argv[2] !== "--addon") {
  try {
    if (buildTypeScript()) console.log("flash-gqa: compiled lib/ to dist/");
  } catch (error) {
    console.error(`flash-gqa: ${error.message}`);
    process.exit(1);
  }
}
