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
  /** [2 * rows * (1 + logprobs)] int32 words: all that is drawn, for one read to bring to the host. */
  readonly drawn: Tensor;
  /** What `sample` takes and gives, one row for each text; it reads all of it on the device. */
  readonly sampling: {
    /** [rows] int32, in `drawn`: the last tokens, which the next step embeds. */
    readonly ids: Tensor;
    /** [rows] float32, in `drawn`. */
    readonly logProbs: Tensor;
    readonly temperature: Tensor;
    readonly topK: Tensor;
    readonly topP: Tensor;
    readonly seed: Tensor;
    /** [rows] int32: tokens drawn before this one, written anew for each step. */
    readonly counter: Tensor;
  };
  /** [rows, logprobs] each, in `drawn`. */
  readonly top: { readonly ids: Tensor; readonly logProbs: Tensor } | null;
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
    this.#buffers.sampling.ids.write(last);
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
    const { drawn, sampling, top } = this.#buffers;
    drawn.dispose();
    for (const tensor of Object.values(sampling)) tensor.dispose();
    for (const tensor of Object.values(top ?? {})) tensor.dispose();
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
    this.#choose(this.#engine.transformer.forward(this.step, this.#buffers.sampling.ids));
  }

  /** hidden: [rows, hidden] of the texts' last tokens. */
  #choose(hidden: Tensor): void {
    const { transformer } = this.#engine;
    const { sampling, top } = this.#buffers;
    const logits = transformer.logitsOf(hidden);
    sample(logits, sampling);
    if (top !== null) topK(logits, this.#settings.logprobs, top);
  }

  #draw(enqueue: () => void): Promise<Draw> {
    this.#buffers.sampling.counter.write(this.#counts);
    this.#engine.device.tidy(enqueue);
    for (let row = 0; row < this.#counts.length; row++) this.#counts[row]!++;
    const draw = this.#read();
    // A draw can be dropped unread; a fault on the device is then told to whoever waits next.
    draw.catch(() => {});
    return draw;
  }

  /** The read stands in the queue before the next step, which overwrites what it reads. */
  async #read(): Promise<Draw> {
    const words = (await this.#buffers.drawn.read()) as Int32Array;
    const rows = this.#counts.length;
    const k = this.#settings.logprobs;
    const drawn = candidates(words.subarray(0, 2 * rows));
    if (k === 0) return { drawn, top: undefined };
    const all = candidates(words.subarray(2 * rows));
    return { drawn, top: drawn.map((_, row) => all.slice(row * k, (row + 1) * k)) };
  }
}

function makeBuffers(device: Device, settings: Settings, seeds: readonly number[]): Buffers {
  const rows = seeds.length;
  const { temperature, topK, topP, logprobs } = settings;
  const floats = (value: number) => device.tensor(new Float32Array(rows).fill(value), [rows]);
  return device.tidy(() => {
    const drawn = device.empty([2 * rows * (1 + logprobs)], "int32");
    const [ids, logProbs] = halves(drawn.slice(0, 0, 2 * rows));
    const [topIds, topLogProbs] = halves(drawn.slice(0, 2 * rows));
    const shape = [rows, logprobs];
    return {
      drawn,
      sampling: {
        ids,
        logProbs,
        temperature: floats(temperature),
        topK: device.tensor(new Int32Array(rows).fill(topK), [rows]),
        topP: floats(topP),
        seed: device.tensor(seedWords(seeds), [rows, 2]),
        counter: device.empty([rows], "int32"),
      },
      top:
        logprobs === 0
          ? null
          : { ids: topIds.reshape(shape), logProbs: topLogProbs.reshape(shape) },
    };
  });
}

/** words: [2 * n] int32. Token ids and, behind them, their log-probabilities. */
function halves(words: Tensor): [Tensor, Tensor] {
  const n = words.size / 2;
  return [words.slice(0, 0, n), words.slice(0, n).reinterpret("float32")];
}

/** The same halves on the host. */
function candidates(words: Int32Array): Candidate[] {
  const n = words.length / 2;
  const logProbs = new Float32Array(words.buffer, words.byteOffset + 4 * n, n);
  return Array.from(logProbs, (logprob, i) => ({ token: words[i]!, logprob }));
}
