// One device for the whole suite: FLASH_GQA_TEST_DEVICE=cpu (default), cuda or cuda:N.

import { afterAll } from "vitest";
import { Device } from "../../lib/index";

export const deviceName = (process.env.FLASH_GQA_TEST_DEVICE ?? "cpu") as "cpu" | "cuda";
export const cuda = deviceName.startsWith("cuda");

/** A device for one test file, disposed after its tests. */
export async function testDevice(): Promise<Device> {
  const device = await Device.open(deviceName);
  afterAll(() => device.dispose());
  return device;
}
