// Typed reading of JSON that someone else wrote: every complaint names the file, the field, what
// was expected and what was found.

import { failure, type GqaError } from "../errors";

const OPERATION = "Llama.load";

/** One JSON object. `where` begins every message: "config.json". */
export class Fields {
  readonly #raw: Readonly<Record<string, unknown>>;
  readonly #where: string;

  private constructor(raw: Readonly<Record<string, unknown>>, where: string) {
    this.#raw = raw;
    this.#where = where;
  }

  static of(value: unknown, where: string): Fields {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw failure(
        "CORRUPT_DATA",
        OPERATION,
        `${where}: expected a JSON object, got ${show(value)}`,
      );
    }
    return new Fields(value as Record<string, unknown>, where);
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#raw, name);
  }

  entries(): [string, unknown][] {
    return Object.entries(this.#raw);
  }

  /** undefined where the field is absent or null: Hugging Face files write both for "not set". */
  get(name: string): unknown {
    return this.has(name) ? (this.#raw[name] ?? undefined) : undefined;
  }

  fail(name: string, expected: string): GqaError {
    const what = `${this.#where}: ${name} expected ${expected}, got ${show(this.get(name))}`;
    return failure("CORRUPT_DATA", OPERATION, what);
  }

  unsupported(name: string, supported: string): GqaError {
    const what = `${this.#where}: ${name} ${show(this.get(name))} is not supported`;
    return failure("UNSUPPORTED", OPERATION, what, `this runner takes ${supported}`);
  }

  int(name: string, min: number, max: number, fallback?: number): number {
    const value = this.get(name) ?? fallback;
    if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > max) {
      throw this.fail(name, `an integer in [${min}, ${max}]`);
    }
    return value;
  }

  number(
    name: string,
    accept: (value: number) => boolean,
    expected: string,
    fallback?: number,
  ): number {
    const value = this.get(name) ?? fallback;
    if (typeof value !== "number" || !accept(value)) throw this.fail(name, expected);
    return value;
  }

  bool(name: string, fallback: boolean): boolean {
    const value = this.get(name) ?? fallback;
    if (typeof value !== "boolean") throw this.fail(name, "true or false");
    return value;
  }
}

/** A JSON value in a message: short, whatever it is. */
export function show(value: unknown): string {
  if (value === undefined) return "nothing";
  let text: string;
  try {
    text = JSON.stringify(value) ?? String(value);
  } catch {
    return "a value nested too deeply to show"; // JSON.parse has no such limit
  }
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
