import { checkInternal, INTERNAL } from "./check";
import type { Device } from "./device";
import { failure, invalid } from "./errors";
import { addon } from "./native";

/** Frees the native graph where dispose() is forgotten. */
const forgotten = new FinalizationRegistry<{ device: Device; id: number }>(({ device, id }) => {
  if (!device.disposed) addon.freeGraph(id);
});

/**
 * A recorded sequence of operations that runs again as one. Made by `device.capture`.
 *
 * The native graph holds the memory of every tensor that its operations read or write, also after
 * the tensor's `dispose()`: a replay reads the inputs as they are then, and overwrites the outputs.
 */
export class Graph {
  readonly #device: Device;
  readonly #checks: Array<() => void> = [];
  readonly #effects: Array<() => void> = [];
  #id: number | null = null;
  /** @internal Who captured it will do so again where something must move that it reads. */
  isExpendable = false;

  private constructor(key: symbol, device: Device) {
    checkInternal(key, "Graph", "device.capture(fn)");
    this.#device = device;
  }

  /** @internal Behind `device.capture`. */
  static capture(device: Device, record: () => unknown): Graph {
    const operation = "Device.capture";
    if (typeof record !== "function") throw invalid(operation, "fn expected a function");
    device.notCapturing(operation);
    const graph = new Graph(INTERNAL, device);
    addon.beginCapture(device.handle);
    device.recording = graph;
    try {
      const result = record();
      if (typeof result === "object" && result !== null && "then" in result) {
        throw invalid(
          operation,
          "fn returned a promise, and a capture is synchronous",
          "await what it needs before the capture and read its outputs after a replay",
        );
      }
    } catch (error) {
      device.recording = null;
      if (!device.disposed) addon.abortCapture(device.handle);
      throw error;
    }
    device.recording = null;
    const { id } = addon.endCapture(device.handle);
    graph.#id = id;
    forgotten.register(graph, { device, id }, graph);
    return graph;
  }

  /** @internal `check` runs before each replay and throws where the record no longer fits. */
  beforeReplay(check: () => void): void {
    this.#checks.push(check);
  }

  /**
   * @internal `effect` runs after each replay that was enqueued: what the host would have noted
   * operation by operation.
   */
  afterReplay(effect: () => void): void {
    this.#effects.push(effect);
  }

  /** True after `dispose()`, and when the device is disposed. */
  get disposed(): boolean {
    return this.#id === null || this.#device.disposed;
  }

  /**
   * Enqueues everything recorded. Throws DISPOSED, BUSY inside another capture, and
   * INVALID_ARGUMENT where a cache step that was recorded has another batch shape now.
   */
  replay(): void {
    const operation = "Graph.replay";
    if (this.#id === null || this.#device.disposed) {
      throw failure("DISPOSED", operation, "the graph has been disposed", "capture a new one");
    }
    this.#device.notCapturing(operation);
    for (const check of this.#checks) check();
    addon.replay(this.#id);
    for (const effect of this.#effects) effect();
  }

  /**
   * Gives the record and its memory up, behind the replays already enqueued. May be called again.
   */
  dispose(): void {
    const id = this.#id;
    if (id === null) return;
    this.#id = null;
    forgotten.unregister(this);
    if (!this.#device.disposed) addon.freeGraph(id);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
