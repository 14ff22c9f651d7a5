// The random programs of cache-model.test.ts and cache-programs.test.ts, many of them.

import { test } from "vitest";
import { checkPrograms } from "../support/cache-ops";
import { testDevice } from "../support/device";
import { checkDevicePrograms } from "../support/device-programs";

const device = await testDevice();

test("10,000 random programs keep every visible key and every count right", () => {
  checkPrograms(10_000);
}, 600_000);

test("10,000 random programs on a device give every token the mean of what it sees", async () => {
  await checkDevicePrograms(device, 10_000);
}, 1_800_000);
