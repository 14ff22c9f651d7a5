// Random programs of the cache's verbs, without a device: support/cache-world.ts has the model.

import { test } from "vitest";
import { checkPrograms } from "./support/cache-ops";

test("random programs keep every visible key and every count right", () => checkPrograms(300));
