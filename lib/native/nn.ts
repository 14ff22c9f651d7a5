// What a model runner needs around attention.

import type { DType } from "../dtype";
import { addon, begin, count, DTYPE_CODE, num, ref, rows } from "./addon";
import type { Ref, RowsRef } from "./types";

export function embedding(
  device: number,
  a: {
    table: Ref;
    ids: Ref;
    out: Ref;
    dtype: DType;
    rows: number;
    vocabSize: number;
    width: number;
  },
): void {
  begin(device);
  ref(a.table);
  ref(a.ids);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.vocabSize);
  num(a.width);
  addon.embedding(count());
}

export function linear(
  device: number,
  a: {
    x: RowsRef;
    weight: Ref;
    bias: Ref | null;
    residual: Ref | null;
    normWeight: Ref | null;
    out: Ref;
    dtype: DType;
    outDtype: DType;
    rows: number;
    inFeatures: number;
    outFeatures: number;
    normEps: number;
    gated: boolean;
  },
): void {
  begin(device);
  rows(a.x);
  ref(a.weight);
  ref(a.bias);
  ref(a.residual);
  ref(a.normWeight);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(DTYPE_CODE[a.outDtype]);
  num(a.rows);
  num(a.inFeatures);
  num(a.outFeatures);
  num(a.normEps);
  num(a.gated ? 1 : 0);
  addon.linear(count());
}

export function rmsNorm(
  device: number,
  a: {
    x: RowsRef;
    weight: Ref;
    out: Ref;
    dtype: DType;
    rows: number;
    numGroups: number;
    width: number;
    eps: number;
  },
): void {
  begin(device);
  rows(a.x);
  ref(a.weight);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.numGroups);
  num(a.width);
  num(a.eps);
  addon.rmsNorm(count());
}

export function add(
  device: number,
  a: { a: Ref; b: Ref; out: Ref; dtype: DType; elements: number },
): void {
  begin(device);
  ref(a.a);
  ref(a.b);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.elements);
  addon.add(count());
}

export function siluMul(
  device: number,
  a: { gate: RowsRef; up: RowsRef; out: Ref; dtype: DType; rows: number; width: number },
): void {
  begin(device);
  rows(a.gate);
  rows(a.up);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.width);
  addon.siluMul(count());
}

export function topK(
  device: number,
  a: {
    logits: Ref;
    ids: Ref;
    logProbs: Ref;
    dtype: DType;
    rows: number;
    vocabSize: number;
    k: number;
  },
): void {
  begin(device);
  ref(a.logits);
  ref(a.ids);
  ref(a.logProbs);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.vocabSize);
  num(a.k);
  addon.topK(count());
}

export function sample(
  device: number,
  a: {
    logits: Ref;
    ids: Ref;
    logProbs: Ref | null;
    temperature: Ref;
    topK: Ref;
    topP: Ref;
    seed: Ref;
    counter: Ref;
    dtype: DType;
    rows: number;
    vocabSize: number;
  },
): void {
  begin(device);
  ref(a.logits);
  ref(a.ids);
  ref(a.logProbs);
  ref(a.temperature);
  ref(a.topK);
  ref(a.topP);
  ref(a.seed);
  ref(a.counter);
  num(DTYPE_CODE[a.dtype]);
  num(a.rows);
  num(a.vocabSize);
  addon.sample(count());
}

export function gatherRows(
  device: number,
  a: {
    x: RowsRef;
    index: Ref;
    out: Ref;
    dtype: DType;
    numRows: number;
    outRows: number;
    width: number;
  },
): void {
  begin(device);
  rows(a.x);
  ref(a.index);
  ref(a.out);
  num(DTYPE_CODE[a.dtype]);
  num(a.numRows);
  num(a.outRows);
  num(a.width);
  addon.gatherRows(count());
}
