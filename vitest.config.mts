import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/*.test.ts"],
    globalSetup: "test/support/build.ts",
    pool: "forks",
    // One process at a time on a GPU: each has a CUDA context of its own.
    maxWorkers: process.env.FLASH_GQA_TEST_DEVICE?.startsWith("cuda") ? 1 : 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
