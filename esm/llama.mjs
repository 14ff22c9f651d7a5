import api from "../dist/llama/index.js";

export const { Llama, Tokenizer } = api;
