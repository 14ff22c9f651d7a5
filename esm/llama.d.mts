export * from "../dist/llama/index.js";
