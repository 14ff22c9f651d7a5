// The golden vectors: test/golden, or all of them where FLASH_GQA_GOLDEN names their folder.

import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { readSafetensors, type Stored } from "./safetensors";

export interface Tolerance {
  o_atol: number;
  lse_atol: number;
  measured_o: number;
  measured_lse: number;
}

export interface GoldenCase {
  name: string;
  kind: string;
  file: string;
  // biome-ignore lint/suspicious/noExplicitAny: each kind of case has its own parameters
  params: any;
  tensors: Record<string, { key: string; shape: number[]; dtype: string }>;
  // biome-ignore lint/suspicious/noExplicitAny: and its own tolerances
  tolerance: any;
}

export const goldenDir: string = resolve(
  process.env.FLASH_GQA_GOLDEN ?? join(__dirname, "..", "golden"),
);

interface Index {
  files: Record<string, { bytes: number; sha256: string }>;
  cases: GoldenCase[];
}

export const goldenIndex: Index = JSON.parse(readFileSync(join(goldenDir, "index.json"), "utf8"));

export function goldenCases(...kinds: string[]): GoldenCase[] {
  return goldenIndex.cases.filter((c) => kinds.includes(c.kind));
}

/** The case's tensor, or undefined where the subset left it out. */
export function golden(c: GoldenCase, name: string): Stored {
  const entry = c.tensors[name];
  const stored = entry && readSafetensors(join(goldenDir, c.file)).get(entry.key);
  if (!stored) throw new Error(`golden case ${c.name} has no tensor ${name}`);
  return stored;
}

export const TOLERANCE_KEY = { float32: "f32", bfloat16: "bf16", float16: "f16" } as const;
