import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/long/*.test.ts"],
    globalSetup: "test/support/build.ts",
    pool: "forks",
    maxWorkers: 1,
    testTimeout: 1_800_000,
    hookTimeout: 60_000,
  },
});
