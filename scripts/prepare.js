// npm's prepare: builds what a clone needs, the addon and dist/. Elsewhere there is nothing to build.

const fs = require("node:fs");
const path = require("node:path");
const { ROOT, hasPackage, run, runTool } = require("./native.js");

if (!fs.existsSync(path.join(ROOT, "tsconfig.json"))) {
  console.log("flash-gqa: an installed package has nothing to prepare.");
} else if (!["cmake-js", "node-addon-api", "typescript"].every(hasPackage)) {
  console.log("flash-gqa: not built, because the devDependencies are not installed.");
} else {
  try {
    run(process.execPath, [path.join(__dirname, "build.js")]);
    runTool("typescript", ["-p", ROOT], "tsc");
  } catch (error) {
    console.error(`flash-gqa: ${error.message}`);
    process.exitCode = 1;
  }
}
