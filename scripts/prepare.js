// npm's prepare: builds what a clone needs. Elsewhere there is nothing to build.

const fs = require("node:fs");
const path = require("node:path");
const { ROOT, hasPackage } = require("./native.js");

if (!fs.existsSync(path.join(ROOT, "tsconfig.json"))) {
  console.log("flash-gqa: an installed package has nothing to prepare.");
} else if (!["cmake-js", "node-addon-api", "typescript"].every(hasPackage)) {
  console.log("flash-gqa: not built, because the devDependencies are not installed.");
} else {
  require("./compile.js");
}
