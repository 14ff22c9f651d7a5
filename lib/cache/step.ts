// One step of a batch through every layer.
//
//            plan                 attend × numLayers            commit
//   (nothing) ──► pages reserved ───────────────────► written ──────────► counted, left of the window given back
//                  │   rollback, dispose: as before plan                    │
//                  ▼                                                        ▼
//                 idle ◄──────────────────────────────────────────────────idle ── next(n) plans again, same buffers

import { checkInt, checkInternal, checkOptions, INT32_MAX, INTERNAL, show } from "../check";
import { failure, invalid } from "../errors";
import type { Graph } from "../graph";
import { Memory } from "../memory";
import { appendKv, attention, ropeRows } from "../native";
import { checkGroup, expectAligned, outputArgument, tensorArgument } from "../ops/arguments";
import type { RopeTable } from "../rope";
import { Tensor } from "../tensor";
import { placeOf, rowOf } from "./cache-memory";
import { type Plan, type Request, type Reservation, type Shortage, undo } from "./ledger";
import type { CacheParts } from "./parts";
import { checkRequest, checkTold, outOfPages } from "./requests";
import type { Sequence } from "./sequence";
import { StepBatch } from "./step-batch";
import type { CommitOptions } from "./text";

/** Rolls back where dispose() is forgotten: else the sequences would stay BUSY. */
const forgotten = new FinalizationRegistry<Plan>(undo);

/**
 * Tokens of some sequences on their way through the layers. Made by `cache.plan`; between there (or `next`) and
 * `commit` or `rollback` its sequences are BUSY for everything else. Dispose it, best with `using`: leaving the scope
 * uncommitted is a rollback.
 */
export class Step implements Disposable {
  /** In the order of the packed rows. */
  readonly sequences: readonly Sequence[];
  readonly #cache: CacheParts;
  readonly #batch: StepBatch;
  #requests: readonly Request[];
  readonly #plan: Plan = { reservation: null };
  #attended: Set<number> = new Set();
  #disposed = false;
  /** Outputs that die at next() or dispose(). */
  #arena: Set<Tensor> = new Set();

  /** cos and sin of this position's rows [totalQ, 2, half] float32, and for what they were computed. */
  #cosSin: Memory | null = null;
  #cosSinFor: object | null = null;
  /** A token of its own for each plan. */
  #position: object = {};
  #recorded: { graph: Graph; layers: Set<number> } | null = null;

  private constructor(
    key: symbol,
    operation: string,
    cache: CacheParts,
    requests: readonly Request[],
  ) {
    checkInternal(key, "Step", "cache.plan([[sequence, tokens]])");
    this.#cache = cache;
    this.#requests = requests;
    this.sequences = Object.freeze(requests.map(({ sequence }) => sequence));
    this.#batch = new StepBatch(operation, cache.device, requests);
    forgotten.register(this, this.#plan);
  }

  /** @internal Behind `cache.plan`. */
  static plan(operation: string, cache: CacheParts, requests: readonly Request[]): Step | Shortage {
    const reservation = cache.ledger.reserve(operation, requests);
    if (!("commit" in reservation)) return reservation;
    let step: Step | null = null;
    try {
      step = new Step(INTERNAL, operation, cache, requests);
      step.#begin(requests, reservation);
      return step;
    } catch (error) {
      reservation.undo();
      step?.dispose();
      throw error;
    }
  }

  /** Packed query rows: the sum of the planned tokens. */
  get totalQ(): number {
    return this.#batch.totalQ;
  }

  /** Planned tokens of each sequence, in the order of `sequences`. */
  get qLens(): readonly number[] {
    return this.#requests.map(({ tokens }) => tokens);
  }

  /** True between plan or next and commit or rollback. */
  get planned(): boolean {
    return this.#plan.reservation !== null;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * Attention of one layer: rotates q and k (with `rope`), writes k and v into their pages, and attends to everything
   * that the layer's window shows. Layers come in any order; a layer attended twice writes the same places again.
   *
   * @param layer in [0, numLayers)
   * @param q [totalQ, numQHeads, headDim] dtype. Packed query rows before rotation.
   * @param k [totalQ, numKvHeads, headDim] dtype.
   * @param v [totalQ, numKvHeads, headDim] dtype.
   * @param options.o [totalQ, numQHeads, headDim] dtype: where to write. Default: a tensor that lives until `next()`
   *   or `dispose()`, or as long as the graph inside `device.capture`; `keep` makes it the caller's.
   * @returns o. Throws INVALID_ARGUMENT, DISPOSED, OUT_OF_MEMORY.
   */
  attend(layer: number, q: Tensor, k: Tensor, v: Tensor, options?: { o?: Tensor }): Tensor {
    const operation = "step.attend";
    // First of all: a getter in the options may end the step.
    const given = checkOptions(operation, options, ["o"]).o;
    this.#expectPlanned(operation);
    const { device, layout, rope } = this.#cache;
    const { numLayers, numQHeads, numKvHeads, headDim, dtype } = layout;
    const { totalQ } = this.#batch;
    checkInt(operation, "layer", layer, 0, numLayers - 1);
    const like = { device, dtype };
    tensorArgument(operation, "q", q, [totalQ, numQHeads ?? "numQHeads", headDim], like);
    tensorArgument(operation, "k", k, [totalQ, numKvHeads, headDim], like);
    tensorArgument(operation, "v", v, [totalQ, numKvHeads, headDim], like);
    checkGroup(operation, q.shape[1]!, numKvHeads);
    expectAligned(operation, "q", q);
    expectAligned(operation, "k", k);
    expectAligned(operation, "v", v);
    const o = outputArgument(operation, "o", given, q.shape, dtype, device, { q, k, v });
    const rotated = rope === null ? null : device.allocate(operation, q.shape, dtype);
    try {
      this.#enqueue(operation, layer, q, k, v, o, rotated);
    } catch (error) {
      if (given === undefined) o.dispose();
      throw error;
    } finally {
      rotated?.dispose();
    }
    if (device.recording !== null) this.#record(device.recording, layer);
    else {
      this.#attended.add(layer);
      if (given === undefined) this.#arena.add(o);
    }
    return o;
  }

  /** Takes an output of `attend` out of the step: it lives until the caller disposes it. */
  keep(o: Tensor): Tensor {
    const operation = "step.keep";
    if (!Tensor.isTensor(o)) throw invalid(operation, `o expected a tensor, got ${show(o)}`);
    o.ref(operation, "o");
    this.#arena.delete(o);
    return o;
  }

  /**
   * Counts the planned tokens and gives back the pages wholly left of the window. Throws INVALID_ARGUMENT, changing
   * nothing, where a layer has not been attended.
   *
   * @param options.tokens for each sequence the planned token ids, or null. Full pages whose tokens were all told are
   *   found again by `cache.open({ tokens })`. What `open` told need not be told here, and must not differ.
   */
  commit(options?: CommitOptions): void {
    const operation = "step.commit";
    const tokens = checkOptions(operation, options, ["tokens"]).tokens;
    const reservation = this.#expectPlanned(operation);
    this.#cache.device.notCapturing(operation);
    const { numLayers } = this.#cache.layout;
    if (this.#attended.size < numLayers) {
      const missing = Array.from({ length: numLayers }, (_, layer) => layer).filter(
        (layer) => !this.#attended.has(layer),
      );
      const named = missing.slice(0, 8).join(", ") + (missing.length > 8 ? ", …" : "");
      throw invalid(
        operation,
        `${missing.length} of ${numLayers} layers have no keys and values of this step: ${named}`,
        "attend every layer, or roll back",
      );
    }
    const told = checkTold(operation, this.#requests, tokens);
    if (this.#plan.reservation !== reservation)
      throw invalid(operation, "a getter in tokens ended the plan");
    reservation.commit(told);
    this.#plan.reservation = null;
  }

  /** Undoes the plan: pages, tables and lengths are as before it. Without a plan, nothing. Throws DISPOSED. */
  rollback(): void {
    this.#live("step.rollback");
    undo(this.#plan);
  }

  /**
   * Plans `tokens` more of the same sequences, one number for all or one each, into the same device buffers. Only
   * what changed travels. Outputs of `attend` are disposed. Throws as `cache.plan` does, and INVALID_ARGUMENT before
   * commit or rollback.
   */
  next(tokens: number | readonly number[]): void {
    const operation = "step.next";
    this.#live(operation);
    this.#cache.device.notCapturing(operation);
    if (this.#plan.reservation !== null) {
      throw invalid(operation, "the planned tokens are still open", "commit or roll back first");
    }
    const requests = this.#nextRequests(operation, tokens);
    this.#live(operation); // a getter in tokens may have ended it
    const reservation = this.#cache.ledger.reserve(operation, requests);
    if (!("commit" in reservation)) throw outOfPages(operation, this.#cache.layout, reservation);
    try {
      this.#begin(requests, reservation);
    } catch (error) {
      reservation.undo();
      throw error;
    }
  }

  /** Rolls back what is not committed and gives the buffers and outputs up. Idempotent. */
  dispose(): void {
    if (this.#disposed) return;
    undo(this.#plan);
    this.#disposed = true;
    this.#emptyArena();
    this.#batch.dispose();
    this.#cosSin?.release();
    this.#cosSin = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #begin(requests: readonly Request[], reservation: Reservation): void {
    const { ledger, memory } = this.#cache;
    this.#batch.write(requests);
    ledger.sendChanges();
    memory.copyPages(reservation.copies);
    this.#emptyArena();
    this.#requests = requests;
    this.#plan.reservation = reservation;
    this.#attended = new Set();
    this.#position = {};
  }

  #nextRequests(operation: string, tokens: number | readonly number[]): Request[] {
    const { sequences } = this;
    const counts: readonly unknown[] = Array.isArray(tokens) ? tokens : sequences.map(() => tokens);
    if (counts.length === sequences.length) {
      return sequences.map((sequence, b) => checkRequest(operation, sequence, counts[b]));
    }
    throw invalid(
      operation,
      `tokens expected one number, or one for each of ${sequences.length} sequences, got ${counts.length}`,
    );
  }

  #enqueue(
    operation: string,
    layer: number,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    rotated: Tensor | null,
  ): void {
    const { device, layout, memory, rope, sinkLogits } = this.#cache;
    const { dtype, numKvHeads, headDim, maxPages, pageSize } = layout;
    const capacity = Math.min(maxPages * pageSize, INT32_MAX);
    const batch = this.#batch.args(device.recording === null ? undefined : capacity);
    const kv = memory.kvArgs(layer, this.#batch.tableRow);
    const numQHeads = q.shape[1]!;
    const cosSin = rope === null ? null : this.#rotation(operation, rope, capacity);
    appendKv(device.handle, {
      q: rotated === null ? null : q.rows(operation),
      qOut: rotated?.ref(operation) ?? null,
      k: k.rows(operation),
      v: v.rows(operation),
      cosSin: cosSin === null ? null : placeOf(cosSin),
      kv,
      batch,
      dtype,
      numQHeads,
      numKvHeads,
      headDim,
      half: rope === null ? 0 : rope.rotaryDim / 2,
      interleaved: rope?.interleaved ?? false,
    });
    const sinks = sinkLogits?.shape[0] === 1 ? 0 : layer;
    attention(device.handle, {
      q: (rotated ?? q).rows(operation),
      o: o.ref(operation),
      lse: null,
      sinkLogits: sinkLogits === null ? null : rowOf(operation, sinkLogits, sinks),
      prefixLens: this.#batch.prefixLens,
      kv,
      batch,
      dtype,
      numQHeads,
      numKvHeads,
      headDim,
      smScale: layout.smScale,
      softCap: layout.softCap,
      causal: true,
      window: layout.windows[layer]!,
      sinkTokens: layout.sinkTokens,
      prefixLen: 0,
      fixedSplit: layout.fixedSplits,
    });
  }

  /** cos and sin of the rows, computed by the first layer of a position and, apart from that, of each graph. */
  #rotation(operation: string, rope: RopeTable, maxKvLen: number): Memory {
    const { device } = this.#cache;
    const { totalQ } = this.#batch;
    const bytes = totalQ * rope.rotaryDim * 4;
    if (this.#cosSin === null || this.#cosSin.bytes < bytes) {
      const grown = new Memory(operation, device, bytes);
      this.#cosSin?.release();
      this.#cosSin = grown;
      this.#cosSinFor = null;
    }
    // Rows recorded in a graph are computed when it is replayed, so they serve no one outside it.
    const wanted = device.recording ?? this.#position;
    if (this.#cosSinFor === wanted) return this.#cosSin;
    ropeRows(device.handle, {
      rope: rope.args(operation),
      positions: null,
      seqLen: 0,
      batch: this.#batch.args(),
      maxKvLen,
      rows: totalQ,
      cosSin: placeOf(this.#cosSin),
    });
    this.#cosSinFor = wanted;
    return this.#cosSin;
  }

  /** A replay attends the recorded layers, if the batch still has the recorded shape. */
  #record(graph: Graph, layer: number): void {
    if (this.#recorded?.graph === graph) {
      this.#recorded.layers.add(layer);
      return;
    }
    const layers = new Set([layer]);
    const shape = this.qLens;
    this.#recorded = { graph, layers };
    this.#cache.memory.pin(graph);
    graph.beforeReplay(() => {
      const operation = "Graph.replay";
      this.#expectPlanned(operation);
      if (shape.some((tokens, b) => tokens !== this.#requests[b]!.tokens)) {
        throw invalid(
          operation,
          `captured for a step of [${shape.join(", ")}] tokens, which plans [${this.qLens.join(", ")}] now`,
          "capture another graph for this shape",
        );
      }
    });
    graph.afterReplay(() => {
      for (const attended of layers) this.#attended.add(attended);
    });
  }

  #live(operation: string): void {
    this.#cache.live(operation);
    if (!this.#disposed) return;
    throw failure("DISPOSED", operation, "the step has been disposed", "plan a new one");
  }

  #expectPlanned(operation: string): Reservation {
    this.#live(operation);
    if (this.#plan.reservation !== null) return this.#plan.reservation;
    throw invalid(operation, "the step has no planned tokens", "next(n) plans more");
  }

  #emptyArena(): void {
    for (const tensor of this.#arena) tensor.dispose();
    this.#arena.clear();
  }
}
