// The random programs of cache-model.test.ts, many of them.

import { test } from "vitest";
import { checkPrograms } from "../support/cache-ops";

test("10,000 random programs keep every visible key and every count right", () => {
  checkPrograms(10_000);
}, 600_000);
