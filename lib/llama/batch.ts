// The texts that are written together, as the device sees them: one step of the cache, and small
// tensors that stay in place from token to token. A step reads the last tokens where the one before
// wrote them, so a decoding step is the same operations on the same memory every time, and can be
// captured once and replayed.

import type { Step } from "../cache/step";
import type { Device } from "../device";
import { GqaError } from "../errors";
import type { Graph } from "../graph";
import { gatherRows, sample, topK } from "../nn";
import { seedWords } from "../nn/sampling";
import type { Tensor } from "../tensor";
import type { Candidate, Engine } from "./generate";
import type { Settings } from "./options";

/** What one step chose, by row. */
export interface Draw {
  readonly drawn: readonly Candidate[];
  /** Where logprobs are asked for. */
  readonly top: readonly (readonly Candidate[])[] | undefined;
}

/** Where a batch's step reads and writes. */
interface Buffers {
  /** [rows] int32: the tokens drawn last, which the next step embeds. */
  readonly ids: Tensor;
  /** [rows] float32 */
  readonly logProbs: Tensor;
  /** [rows, settings.logprobs] each */
  readonly top: { readonly ids: Tensor; readonly logProbs: Tensor } | null;
  /** What `sample` reads on the device, one row for each text. */
  readonly temperature: Tensor;
  readonly topK: Tensor;
  readonly topP: Tensor;
  readonly seed: Tensor;
  /** [rows] int32: tokens drawn before this one, written anew for each step. */
  readonly counter: Tensor;
}

export class Batch implements Disposable {
  readonly #engine: Engine;
  readonly #settings: Settings;
  readonly #buffers: Buffers;
  readonly #counts: Int32Array;
  #graph: Graph | null = null;

  /** `step` is planned, and from here on the batch's; `texts` are in the order of its rows. */
  constructor(
    engine: Engine,
    readonly step: Step,
    texts: readonly { readonly index: number; readonly count: number }[],
    settings: Settings,
  ) {
    this.#engine = engine;
    this.#settings = settings;
    this.#counts = Int32Array.from(texts, (text) => text.count);
    const seeds = texts.map((text) => settings.seed + text.index);
    try {
      this.#buffers = makeBuffers(engine.device, settings, seeds);
    } catch (error) {
      step.dispose();
      throw error;
    }
  }

  /** Enqueues the last piece of the prompts. `ends`: the rows of the step where the texts end. */
  begin(tokens: Int32Array, ends: readonly number[]): Promise<Draw> {
    const { transformer } = this.#engine;
    return this.#draw(() => {
      const hidden = transformer.forward(this.step, tokens);
      this.#choose(gatherRows(hidden, Int32Array.from(ends)));
    });
  }

  /** Enqueues the step for a token of each text behind `last`, the texts' last tokens. */
  resume(last: Int32Array): Promise<Draw> {
    this.#buffers.ids.write(last);
    return this.#draw(() => this.#decode());
  }

  /**
   * Enqueues the step for a token of each text behind the ones drawn last. It is captured here and
   * not by `resume`: the first step of a set of texts starts at once, and sets that change from step
   * to step cost no captures.
   */
  advance(): Promise<Draw> {
    return this.#draw(() => {
      if (this.#graph === null || this.#graph.disposed) this.#graph = this.#capture();
      if (this.#graph === null) this.#decode();
      else this.#graph.replay();
    });
  }

  /** Rolls the step back where it is not committed. Draws that are under way still resolve. */
  dispose(): void {
    this.#graph?.dispose();
    this.step.dispose();
    const { top, ...tensors } = this.#buffers;
    for (const tensor of [...Object.values(tensors), ...Object.values(top ?? {})]) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** null: not captured for now. */
  #capture(): Graph | null {
    if (!this.#engine.graphs) return null;
    try {
      const graph = this.#engine.device.capture(() =>
        this.#engine.device.tidy(() => this.#decode()),
      );
      graph.isExpendable = true;
      return graph;
    } catch (error) {
      // While files are loaded on this device nothing can be captured; the text need not wait.
      if (error instanceof GqaError && error.code === "BUSY") return null;
      throw error;
    }
  }

  #decode(): void {
    this.#choose(this.#engine.transformer.forward(this.step, this.#buffers.ids));
  }

  /** hidden: [rows, hidden] of the texts' last tokens. */
  #choose(hidden: Tensor): void {
    const { transformer } = this.#engine;
    const { top, ...options } = this.#buffers;
    const logits = transformer.logits(transformer.finalNorm(hidden));
    sample(logits, options);
    if (top !== null) topK(logits, this.#settings.logprobs, top);
  }

  #draw(enqueue: () => void): Promise<Draw> {
    this.#buffers.counter.write(this.#counts);
    this.#engine.device.tidy(enqueue);
    for (let row = 0; row < this.#counts.length; row++) this.#counts[row]!++;
    const draw = this.#read();
    // A draw can be dropped unread; a fault on the device is then told to whoever waits next.
    draw.catch(() => {});
    return draw;
  }

  /** The reads stand in the queue before the next step, which overwrites what they read. */
  async #read(): Promise<Draw> {
    const { ids, logProbs, top } = this.#buffers;
    const tensors = top === null ? [ids, logProbs] : [ids, logProbs, top.ids, top.logProbs];
    const [tokens, logs, topTokens, topLogs] = await Promise.all(
      tensors.map((tensor) => tensor.read()),
    );
    const drawn = candidates(tokens!, logs!);
    if (topTokens === undefined) return { drawn, top: undefined };
    const k = this.#settings.logprobs;
    const all = candidates(topTokens, topLogs!);
    return { drawn, top: drawn.map((_, row) => all.slice(row * k, (row + 1) * k)) };
  }
}

function makeBuffers(device: Device, settings: Settings, seeds: readonly number[]): Buffers {
  const rows = seeds.length;
  const { temperature, topK, topP, logprobs } = settings;
  const floats = (value: number) => device.tensor(new Float32Array(rows).fill(value), [rows]);
  return device.tidy(() => ({
    ids: device.empty([rows], "int32"),
    logProbs: device.empty([rows]),
    top:
      logprobs === 0
        ? null
        : {
            ids: device.empty([rows, logprobs], "int32"),
            logProbs: device.empty([rows, logprobs]),
          },
    temperature: floats(temperature),
    topK: device.tensor(new Int32Array(rows).fill(topK), [rows]),
    topP: floats(topP),
    seed: device.tensor(seedWords(seeds), [rows, 2]),
    counter: device.empty([rows], "int32"),
  }));
}

function candidates(ids: ArrayLike<number>, logProbs: ArrayLike<number>): Candidate[] {
  return Array.from(ids, (token, i) => ({ token, logprob: logProbs[i]! }));
}
