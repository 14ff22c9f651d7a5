// Device memory with a count of the tensors that look into it.

import type { Device } from "./device";
import { fromNative, GqaError } from "./errors";
import { addon, type MemoryHandle } from "./native";

/**
 * Starts with one owner. The last release gives the memory back in queue order, so work already
 * enqueued still finds it. Where release is forgotten, the handle's native finalizer does the same.
 */
export class Memory {
  readonly #device: Device;
  readonly #handle: MemoryHandle;
  readonly bytes: number;
  #owners = 1;

  constructor(
    operation: string,
    device: Device,
    bytes: number,
    where: "device" | "host" = "device",
  ) {
    this.#device = device;
    const allocate = where === "host" ? addon.allocateHost : addon.allocate;
    try {
      this.#handle = allocate(device.handle, bytes);
    } catch (error) {
      // The addon does not know for which of the user's calls the memory is.
      throw fromNative(operation, error instanceof GqaError ? error.cause : error);
    }
    this.bytes = bytes;
  }

  get id(): number {
    return this.#handle.id;
  }

  retain(): this {
    this.#owners++;
    return this;
  }

  release(): void {
    if (--this.#owners > 0 || this.#device.disposed) return;
    addon.free(this.#handle.id);
  }
}
