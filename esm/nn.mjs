import api from "../dist/nn/index.js";

export const { add, embedding, gatherRows, linear, rmsNorm, sample, siluMul, topK } = api;
