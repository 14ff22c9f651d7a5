// AbortSignals of the user's.

import { show } from "./check";
import { GqaError, invalid } from "./errors";

/** By its shape and not by instanceof: a test environment brings its own AbortSignal class. */
export function checkSignal(operation: string, signal: unknown): AbortSignal | undefined {
  if (signal === undefined) return undefined;
  const { aborted, addEventListener, removeEventListener } = (signal ?? {}) as Partial<AbortSignal>;
  const isSignal =
    typeof aborted === "boolean" &&
    typeof addEventListener === "function" &&
    typeof removeEventListener === "function";
  if (isSignal) return signal as AbortSignal;
  throw invalid(operation, `signal expected an AbortSignal, got ${show(signal)}`);
}

/** Throws ABORTED, with the signal's reason as cause. */
export function throwIfAborted(operation: string, signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  const message = `${operation}: aborted by its signal`;
  throw new GqaError("ABORTED", message, { operation, cause: signal.reason });
}
