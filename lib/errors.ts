/** What went wrong, for programs. Match on `code`; the message is for people and may change. */
export type GqaErrorCode =
  | "INVALID_ARGUMENT"
  | "UNSUPPORTED"
  | "OUT_OF_PAGES"
  | "OUT_OF_MEMORY"
  | "DISPOSED"
  | "BUSY"
  | "ABORTED"
  | "CORRUPT_DATA"
  | "NATIVE_LOAD"
  | "DEVICE";

const CODES: ReadonlySet<string> = new Set<GqaErrorCode>([
  "INVALID_ARGUMENT",
  "UNSUPPORTED",
  "OUT_OF_PAGES",
  "OUT_OF_MEMORY",
  "DISPOSED",
  "BUSY",
  "ABORTED",
  "CORRUPT_DATA",
  "NATIVE_LOAD",
  "DEVICE",
]);

/**
 * The one error class. The message reads `operation: argument expected …, got …: the way out`.
 * Errors of the addon arrive as `cause`.
 */
export class GqaError extends Error {
  override readonly name: string = "GqaError";
  readonly code: GqaErrorCode;
  /** The operation that refused, as its message begins: "attention", "Tensor.read". */
  readonly operation: string | undefined;

  constructor(
    code: GqaErrorCode,
    message: string,
    options?: { operation?: string; cause?: unknown },
  ) {
    super(
      message,
      options !== undefined && "cause" in options ? { cause: options.cause } : undefined,
    );
    this.code = code;
    this.operation = options?.operation;
  }
}

/** A `GqaError` whose message names its operation first. `wayOut` says what to do instead. */
export function failure(
  code: GqaErrorCode,
  operation: string,
  what: string,
  wayOut?: string,
): GqaError {
  const end = wayOut === undefined ? "" : `: ${wayOut}`;
  return new GqaError(code, `${operation}: ${what}${end}`, { operation });
}

/** INVALID_ARGUMENT, the commonest failure. */
export function invalid(operation: string, what: string, wayOut?: string): GqaError {
  return failure("INVALID_ARGUMENT", operation, what, wayOut);
}

function codeOf(error: object): GqaErrorCode {
  const code: unknown = "code" in error ? error.code : undefined;
  return typeof code === "string" && CODES.has(code) ? (code as GqaErrorCode) : "DEVICE";
}

/**
 * Turns what the addon throws (an Error with a `code`) into a `GqaError`; leaves a `GqaError` as it
 * is. The addon's messages begin with their operation; `caller` stands in where one does not.
 */
export function fromNative(caller: string, error: unknown): GqaError {
  if (error instanceof GqaError) return error;
  const isError = typeof error === "object" && error !== null && "message" in error;
  const text = isError ? String(error.message) : String(error);
  const named = /^([\w.]+): /.exec(text)?.[1];
  return new GqaError(
    isError ? codeOf(error) : "DEVICE",
    named === undefined ? `${caller}: ${text}` : text,
    { operation: named ?? caller, cause: error },
  );
}
