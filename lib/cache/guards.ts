// When a verb may have a sequence.

import { failure, invalid } from "../errors";
import type { LedgerConfig, Request } from "./ledger";
import type { Sequence } from "./sequence";

type Open = ReadonlySet<Sequence>;

export function expectOpen(operation: string, open: Open, sequence: Sequence): void {
  if (sequence.isClosed) {
    throw failure("DISPOSED", operation, `sequence ${sequence.id} is closed`, "open a new one");
  }
  if (!open.has(sequence)) {
    throw invalid(operation, `sequence ${sequence.id} belongs to another cache`);
  }
}

/** Its pages lie on the device. */
export function expectResident(operation: string, open: Open, sequence: Sequence): void {
  expectOpen(operation, open, sequence);
  if (!sequence.offloaded) return;
  const what = `sequence ${sequence.id} is offloaded: its pages lie on the host`;
  throw invalid(operation, what, "await cache.restore(sequence) first");
}

/** And nobody else is at work on it. */
export function expectIdle(operation: string, open: Open, sequence: Sequence): void {
  expectOpen(operation, open, sequence);
  if (sequence.inStep) throw busy(operation, sequence);
  expectResident(operation, open, sequence);
}

export function expectPlannable(
  operation: string,
  open: Open,
  config: LedgerConfig,
  requests: readonly Request[],
): void {
  const seen = new Set<Sequence>();
  for (const { sequence, tokens } of requests) {
    expectIdle(operation, open, sequence);
    if (seen.has(sequence)) {
      throw invalid(
        operation,
        `sequence ${sequence.id} stands twice in one plan`,
        "plan its tokens as one entry",
      );
    }
    seen.add(sequence);
    const end = sequence.length + tokens;
    if (end > config.maxSeqLen) {
      throw invalid(
        operation,
        `sequence ${sequence.id} would hold ${end} tokens, more than maxSeqLen ${config.maxSeqLen}`,
        "createCache({ maxSeqLen }) with more",
      );
    }
    if (end < sequence.prefixLen) {
      throw invalid(
        operation,
        `sequence ${sequence.id} would hold ${end} of the ${sequence.prefixLen} tokens of its prefixLen, ` +
          "which see each other and so must be computed together",
        "plan at least prefixLen tokens first",
      );
    }
  }
}

export function busy(operation: string, sequence: Sequence): Error {
  return failure(
    "BUSY",
    operation,
    `sequence ${sequence.id} is in an open step, or being saved, offloaded or restored`,
    "commit, roll back or dispose that step, or await what is under way, first",
  );
}
