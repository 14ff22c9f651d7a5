/** Element types. bfloat16 and float16 are stored as 16-bit values and computed in float32. */
export type DType = "float32" | "float16" | "bfloat16" | "int32";

export const DTYPES: readonly DType[] = ["float32", "float16", "bfloat16", "int32"];

/** Bytes per element. */
export function dtypeBytes(dtype: DType): number {
  return dtype === "float32" || dtype === "int32" ? 4 : 2;
}
