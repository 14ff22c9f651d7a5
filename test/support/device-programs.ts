// Random programs of the cache's verbs on a device: every token's attention against a plain model that keeps every
// token of every sequence. Moves to the host and back run while other verbs do.

import fc from "fast-check";
import { expect } from "vitest";
import { HostMemory } from "../../lib/cache/host-memory";
import { type Device, GqaError, type KvCache, type Sequence } from "../../lib/index";
import { attendAll, HEAD_DIM, meanCache } from "./mean-cache";
import { programSeed } from "./random";

const MOST_TOKENS = 512;
const VERBS = [
  ...["open", "fork", "truncate", "close", "plan", "plan", "plan", "plan", "plan", "plan"],
  ...["again", "again", "offload", "offload", "restore", "restore", "restore", "save", "evict"],
  ...["pin", "unpin"],
] as const;
type Verb = (typeof VERBS)[number];

interface Op {
  verb: Verb;
  who: number;
  tokens: number[];
  /** A plan is committed, a move not aborted. */
  good: boolean;
  /** A move is awaited at once. */
  wait: boolean;
}

const program = fc.array(
  fc.record<Op>({
    verb: fc.constantFrom(...VERBS),
    who: fc.nat(1000),
    tokens: fc.array(fc.integer({ min: 1, max: 20 }), { minLength: 1, maxLength: 3 }),
    good: fc.constantFrom(true, true, false),
    wait: fc.boolean(),
  }),
  { minLength: 5, maxLength: 40 },
);

const settings = fc.record({
  window: fc.constantFrom<number | number[]>(0, 1, 7, 8, 9, 24, [5, 12], [0, 6]),
  sinkTokens: fc.constantFrom(0, 1, 9),
  rollbackTokens: fc.constantFrom(0, 10),
  maxTokens: fc.constantFrom(40, 160, 400),
  // Pages of 1 KiB, and chunks of four.
  hostBytes: fc.constantFrom(0, 16 << 10, 1 << 20),
});
type Settings = typeof settings extends fc.Arbitrary<infer T> ? T : never;

function visibleMean(tokens: readonly number[], position: number, window: number, sinks: number) {
  let [sum, count] = [0, 0];
  for (let key = 0; key <= position; key++) {
    if (window > 0 && key <= position - window && key >= sinks) continue;
    sum += tokens[key]!;
    count++;
  }
  return sum / count;
}

class Program {
  readonly #device: Device;
  readonly #chosen: Settings;
  readonly #cache: KvCache;
  readonly #model = new Map<Sequence, number[]>();
  readonly #texts: number[][] = [[]];
  readonly #checks: Promise<void>[] = [];
  readonly #moving = new Map<Sequence, Promise<void>>();
  readonly #pinned: Sequence[] = [];
  #next = 1;

  constructor(device: Device, chosen: Settings) {
    this.#device = device;
    this.#chosen = chosen;
    this.#cache = meanCache(device, { ...chosen, maxSeqLen: MOST_TOKENS });
  }

  async run(op: Op): Promise<void> {
    const sequence = [...this.#model.keys()][op.who % Math.max(1, this.#model.size)];
    if (op.verb === "open" || sequence === undefined) this.#model.set(this.#cache.open(), []);
    else if (op.verb === "again") this.#again(op);
    else if (op.verb === "evict") this.#cache.evict(op.tokens[0]!);
    else if (op.verb === "unpin") this.#pinned.pop()?.unpin();
    else {
      await this.#arrived(sequence);
      await this.#runOn(op, sequence, this.#model.get(sequence)!);
    }
    this.#checkCounts();
  }

  async end(): Promise<void> {
    for (const sequence of this.#model.keys()) await this.#arrived(sequence);
    await Promise.all(this.#checks);
    for (const sequence of [...this.#model.keys(), ...this.#pinned]) {
      sequence.close();
      sequence.unpin();
    }
    expect(this.#cache.stats()).toMatchObject({
      tokens: 0,
      sequences: 0,
      offloaded: 0,
      pages: { used: 0, shared: 0, pinned: 0 },
      bytes: { host: { used: 0 } },
    });
    this.#cache.evict();
    const { free, total, cached } = this.#cache.stats().pages;
    expect([free, cached]).toEqual([total, 0]);
    this.#cache.dispose();
  }

  dispose(): void {
    this.#cache.dispose();
  }

  async #runOn(op: Op, sequence: Sequence, tokens: number[]): Promise<void> {
    if (op.verb === "offload" || op.verb === "restore") {
      const move = this.#move(op.verb, sequence, op.good);
      this.#moving.set(sequence, move);
      if (op.wait) await this.#arrived(sequence);
    } else if (op.verb === "close") {
      sequence.close();
      this.#model.delete(sequence);
    } else if (op.verb === "plan") {
      this.#plan(op);
    } else if (sequence.offloaded) {
      expect(() => sequence.fork()).toThrow("cache.restore(sequence)");
    } else if (op.verb === "fork") {
      this.#model.set(sequence.fork(), [...tokens]);
    } else if (op.verb === "truncate") {
      const length = Math.max(0, sequence.length - op.tokens[0]!);
      if (!sequence.pages.canTruncate(length)) return;
      sequence.truncate(length);
      tokens.length = length;
    } else if (op.verb === "pin") {
      sequence.pin();
      this.#pinned.push(sequence);
    } else {
      await this.#copy(sequence, tokens);
    }
  }

  /** Settles when the move has, one way or the other: what may go wrong is checked here. */
  async #move(verb: "offload" | "restore", sequence: Sequence, good: boolean): Promise<void> {
    const before = sequence.offloaded;
    const controller = new AbortController();
    const { signal } = controller;
    const moved = this.#cache[verb](sequence, { signal });
    // A move that was refused at once is over: nobody holds the sequence.
    if (sequence.inStep) expect(() => sequence.close()).toThrow("being saved, offloaded");
    if (!good) controller.abort();
    try {
      await moved;
      expect(good).toBe(true);
      expect([before, sequence.offloaded]).toEqual([verb === "restore", verb === "offload"]);
    } catch (error) {
      expect(error).toBeInstanceOf(GqaError);
      const { code } = error as GqaError;
      const refused = { offload: "OUT_OF_MEMORY", restore: "OUT_OF_PAGES" }[verb];
      const codes = before === (verb === "offload") ? ["INVALID_ARGUMENT"] : [refused];
      if (!good) codes.push("ABORTED");
      expect(codes).toContain(code);
      expect(sequence.offloaded).toBe(before);
    }
  }

  async #arrived(sequence: Sequence): Promise<void> {
    await this.#moving.get(sequence);
    this.#moving.delete(sequence);
  }

  async #copy(sequence: Sequence, tokens: number[]): Promise<void> {
    const bytes = await this.#cache.save(sequence);
    try {
      this.#model.set(await this.#cache.load(bytes), [...tokens]);
    } catch (error) {
      expect((error as GqaError).code).toBe("OUT_OF_PAGES");
    }
  }

  /** A text that was, told up to a page's end and a token: what is found is all that is told. */
  #again(op: Op): void {
    const text = this.#texts[op.who % this.#texts.length]!;
    const tokens = text.slice(0, text.length - (text.length % 8) + 1);
    const found = this.#cache.match(tokens);
    const again = this.#cache.open({ tokens: tokens.slice(0, found + 1) });
    expect(again.length).toBe(found);
    this.#model.set(again, tokens.slice(0, found));
    again.truncate(found); // forgets the token that was told and not computed
  }

  #plan(op: Op): void {
    const all = [...this.#model.keys()].filter((s) => !this.#moving.has(s) && !s.offloaded);
    if (all.length === 0) return;
    const chosen = new Set(op.tokens.map((_, i) => all[(op.who + i) % all.length]!));
    const requests = [...chosen].map((s, i) => [s, op.tokens[i]!] as const);
    if (requests.some(([s, n]) => s.length + n > MOST_TOKENS)) return;
    const before = this.#cache.stats();
    using step = this.#cache.tryPlan(requests);
    if (step === null) {
      expect(this.#cache.stats()).toEqual(before);
      return;
    }
    const fresh = requests.map(([, n]) =>
      Array.from({ length: n }, () => (this.#next++ * 37) % 101),
    );
    const { windows, sinkTokens } = this.#cache.layout;
    for (const [layer, o] of attendAll(this.#device, step, fresh.flat()).entries()) {
      const want = requests.flatMap(([s], b) => {
        const tokens = [...this.#model.get(s)!, ...fresh[b]!];
        return fresh[b]!.map((_, i) =>
          visibleMean(tokens, s.length + i, windows[layer]!, sinkTokens),
        );
      });
      this.#checks.push(
        o.read().then((values) => {
          for (const [row, mean] of want.entries()) {
            expect(values[row * HEAD_DIM]).toBeCloseTo(mean, 3);
          }
        }),
      );
    }
    if (!op.good) return;
    step.commit({ tokens: fresh });
    for (const [b, [s]] of requests.entries()) {
      this.#model.get(s)!.push(...fresh[b]!);
      this.#texts.push([...this.#model.get(s)!]);
    }
  }

  #checkCounts(): void {
    const { pages, bytes, tokens } = this.#cache.stats();
    expect(pages.used + pages.cached + pages.free).toBe(pages.total);
    for (const count of [pages.used, pages.shared, pages.pinned, pages.free]) {
      expect(count).toBeGreaterThanOrEqual(0);
    }
    expect(bytes.host.used).toBeLessThanOrEqual(bytes.host.total);
    expect(bytes.host.total).toBeLessThanOrEqual(this.#chosen.hostBytes);
    expect(tokens).toBe([...this.#model.values()].reduce((sum, { length }) => sum + length, 0));
  }
}

/** Runs so many programs. FLASH_GQA_TEST_SEED repeats a run, whose seed is printed. */
export async function checkDevicePrograms(device: Device, numRuns: number): Promise<void> {
  const seed = programSeed(`cache programs on ${device.kind}`, numRuns);
  const { chunkBytes } = HostMemory;
  HostMemory.chunkBytes = 4 << 10;
  try {
    await fc.assert(
      fc.asyncProperty(settings, program, async (chosen, ops) => {
        const random = new Program(device, chosen);
        try {
          for (const op of ops) await random.run(op);
          await random.end();
        } finally {
          random.dispose();
        }
      }),
      { numRuns, seed },
    );
  } finally {
    HostMemory.chunkBytes = chunkBytes;
  }
}
