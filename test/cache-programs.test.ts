// Random programs of the cache's verbs on a device: support/device-programs.ts has the model.

import { expect, it } from "vitest";
import { cuda, testDevice } from "./support/device";
import { checkDevicePrograms } from "./support/device-programs";

const device = await testDevice();

it("random programs give every token the mean of what it sees", async () => {
  await checkDevicePrograms(device, cuda ? 1000 : 300);
  expect(device.disposed).toBe(false);
}, 300_000);
