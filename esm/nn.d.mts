export * from "../dist/nn/index.js";
