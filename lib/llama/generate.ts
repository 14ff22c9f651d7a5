// Writing text: the prompts go through the cache in pieces, then every sequence takes one token a
// step, all in one batch. Steps are enqueued before the last one's tokens are looked at, so that
// the device does not wait for the text.

import type { KvCache } from "../cache/kv-cache";
import type { Sequence } from "../cache/sequence";
import type { Step } from "../cache/step";
import type { Device } from "../device";
import { GqaError } from "../errors";
import { throwIfAborted } from "../signal";
import { Batch } from "./batch";
import type { Settings } from "./options";
import { StopFinder, StreamingDecoder } from "./stream-text";
import type { Transformer } from "./transformer";

const OPERATION = "Llama.generate";

/**
 * "eos": a stop token came; "stop": a stop string; "length": maxTokens, or the end of the context.
 */
export type FinishReason = "eos" | "stop" | "length";

export interface Candidate {
  readonly token: number;
  /** Natural logarithm of its probability under the full softmax at temperature 1. */
  readonly logprob: number;
}

/** One token of one text. */
export interface GeneratedPart extends Candidate {
  /** Which prompt it continues. */
  readonly index: number;
  /**
   * The text that this token makes certain. May be empty: text that can still become part of a stop
   * string, and characters that are not complete, come with a later token.
   */
  readonly text: string;
  /** The most probable tokens, most probable first, where `logprobs` asks for them. */
  readonly top?: readonly Candidate[];
  /** Given with a text's last token. */
  readonly finishReason?: FinishReason;
}

/** What generation needs of a model. */
export interface Engine {
  readonly device: Device;
  readonly cache: KvCache;
  readonly transformer: Transformer;
  /** Tokens of prompt and text together. */
  readonly contextLength: number;
  readonly decode: (ids: readonly number[]) => string;
  /** Whether decoding steps are captured and replayed. */
  readonly graphs: boolean;
}

/**
 * Prompt tokens that go through the model at once: enough to fill a device, little enough to hold
 * their activations.
 */
const PREFILL_ROWS = 2048;

/**
 * Steps that stand in the queue behind the one whose tokens are awaited. With one, a device whose
 * step is shorter than the way of its news to the event loop and of the answer back would idle.
 */
const STEPS_AHEAD = 2;

/** One sequence being written. */
class Text {
  finished = false;
  readonly #settings: Settings;
  readonly #decoder: StreamingDecoder;
  readonly #stops: StopFinder;
  #count = 0;
  #last = -1;

  constructor(
    readonly index: number,
    readonly prompt: readonly number[],
    readonly seq: Sequence,
    readonly limit: number,
    settings: Settings,
    decode: (ids: readonly number[]) => string,
  ) {
    this.#settings = settings;
    this.#decoder = new StreamingDecoder(decode, prompt);
    this.#stops = new StopFinder(settings.stop);
  }

  /** Tokens written. */
  get count(): number {
    return this.#count;
  }

  get last(): number {
    return this.#last;
  }

  push({ token, logprob }: Candidate, top: readonly Candidate[] | undefined): GeneratedPart {
    this.#last = token;
    this.#count++;
    const isEnd = this.#settings.stopTokens.has(token);
    let text = this.#stops.push(isEnd ? this.#decoder.flush() : this.#decoder.push(token));
    let finishReason: FinishReason | undefined;
    if (this.#stops.found) finishReason = "stop";
    else if (isEnd) finishReason = "eos";
    else if (this.#count === this.limit) finishReason = "length";
    if (finishReason !== undefined) {
      text += this.#stops.push(this.#decoder.flush()) + this.#stops.flush();
      this.finished = true;
    }
    const part = { index: this.index, token, logprob, text };
    return { ...part, ...(top && { top }), ...(finishReason && { finishReason }) };
  }
}

/**
 * Writes a text after each prompt. `prompts` and `settings` are checked. Closing the iterator frees
 * all pages.
 */
export async function* generateParts(
  engine: Engine,
  prompts: readonly (readonly number[])[],
  settings: Settings,
): AsyncGenerator<GeneratedPart, void, undefined> {
  let texts: Text[] = [];
  let batch: Batch | null = null;
  try {
    throwIfAborted(OPERATION, settings.signal);
    for (const [index, prompt] of prompts.entries()) {
      const limit = Math.min(settings.maxTokens, engine.contextLength - prompt.length);
      const seq = engine.cache.open();
      texts.push(new Text(index, prompt, seq, limit, settings, engine.decode));
    }
    const { step, tokens, ends } = await prefill(engine, texts, settings.signal);
    batch = new Batch(engine, step, texts, settings);
    let draws = [batch.begin(tokens, ends)];
    batch.step.commit();
    for (;;) {
      while (draws.length <= STEPS_AHEAD && goOn(texts, draws.length) && nextFits(batch.step)) {
        draws.push(batch.advance());
        batch.step.commit();
      }
      if (draws.length === 0) {
        // A text has ended, or pages are short: what is left is planned anew.
        batch.dispose();
        for (const text of texts) if (text.finished) text.seq.close();
        texts = texts.filter((text) => !text.finished);
        const next = engine.cache.plan(texts.map((text) => [text.seq, 1]));
        batch = new Batch(engine, next, texts, settings);
        draws = [batch.resume(Int32Array.from(texts, (text) => text.last))];
        batch.step.commit();
        continue;
      }
      const { drawn, top } = await unlessAborted(draws.shift()!, settings.signal);
      for (const [row, text] of texts.entries()) {
        // What was drawn ahead of a text's end is nobody's.
        if (!text.finished) yield text.push(drawn[row]!, top?.[row]);
      }
      throwIfAborted(OPERATION, settings.signal);
      if (texts.every((text) => text.finished)) return;
    }
  } finally {
    batch?.dispose();
    for (const text of texts) text.seq.close();
  }
}

/**
 * Runs the prompts but for a last piece, in which every sequence has a token left, and plans that
 * piece. `ends`: the row of it where each sequence ends.
 */
async function prefill(engine: Engine, texts: readonly Text[], signal: AbortSignal | undefined) {
  const { cache, device, transformer } = engine;
  const done = texts.map(() => 0);
  for (let maxRows = PREFILL_ROWS; ; ) {
    const left = texts.map((text, i) => text.prompt.length - done[i]!);
    const smallest = left.every((tokens) => tokens === 1);
    const isLast = smallest || sum(left) <= maxRows;
    let room = maxRows;
    const lengths = left.map((tokens) => {
      const length = isLast ? tokens : Math.min(tokens - 1, room);
      room -= length;
      return length;
    });
    const requests = texts
      .map((text, i): [Sequence, number] => [text.seq, lengths[i]!])
      .filter(([, length]) => length > 0);
    const tokens = Int32Array.from(
      texts.flatMap((text, i) => text.prompt.slice(done[i]!, done[i]! + lengths[i]!)),
    );
    // With a window, pages come free as the prompt goes by: a smaller piece may fit where a large
    // one does not.
    const step = smallest || maxRows === 1 ? cache.plan(requests) : cache.tryPlan(requests);
    if (step === null) {
      maxRows = Math.ceil(tokens.length / 2);
      continue;
    }
    if (isLast) return { step, tokens, ends: runningSum(lengths).map((end) => end - 1) };
    try {
      device.tidy(() => void transformer.forward(step, tokens));
      step.commit();
    } finally {
      step.dispose();
    }
    lengths.forEach((length, i) => {
      done[i]! += length;
    });
    maxRows = PREFILL_ROWS;
    await unlessAborted(device.synchronize(), signal);
  }
}

/** Whether every text wants the token behind those being drawn. */
function goOn(texts: readonly Text[], drawing: number): boolean {
  return texts.every((text) => !text.finished && text.count + drawing < text.limit);
}

/** Plans one more token for the same sequences, unless pages are short. */
function nextFits(step: Step): boolean {
  try {
    step.next(1);
    return true;
  } catch (error) {
    if (error instanceof GqaError && error.code === "OUT_OF_PAGES") return false;
    throw error;
  }
}

/** The promise's value, or ABORTED as soon as the signal says so. */
async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  throwIfAborted(OPERATION, signal);
  let onAbort = () => {};
  const aborted = new Promise<void>((resolve) => {
    onAbort = resolve;
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    await Promise.race([promise, aborted]);
    throwIfAborted(OPERATION, signal);
    return await promise;
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function runningSum(values: readonly number[]): number[] {
  let total = 0;
  return values.map((value) => (total += value));
}
