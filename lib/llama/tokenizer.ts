// Text <-> token ids, by the tokenizer that the checkpoint brings. A thin cover over
// @huggingface/tokenizers.

import * as path from "node:path";
import type { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers" with {
  "resolution-mode": "import",
};
import { checkInts } from "../check";
import { GqaError, invalid } from "../errors";
import { readJson } from "./safetensors";

type Json = Record<string, unknown>;

// The package's types are those of its ES module; what `require` finds is its CommonJS twin.
const { Tokenizer: TokenizerClass } = require("@huggingface/tokenizers") as {
  Tokenizer: new (tokenizer: Json, config: Json) => HuggingFaceTokenizer;
};

export class Tokenizer {
  readonly #inner: HuggingFaceTokenizer;

  /** `tokenizer` and `config`: contents of tokenizer.json and tokenizer_config.json. */
  constructor(tokenizer: Json, config: Json) {
    try {
      this.#inner = new TokenizerClass(tokenizer, config);
    } catch (error) {
      throw new GqaError(
        "CORRUPT_DATA",
        `Llama.load: tokenizer.json cannot be used (${(error as Error).message})`,
        { operation: "Llama.load", cause: error },
      );
    }
  }

  /** The tokenizer of a checkpoint, or null where it has none. */
  static async load(dir: string): Promise<Tokenizer | null> {
    const tokenizer = await readJson(path.join(dir, "tokenizer.json"));
    if (tokenizer === undefined) return null;
    const config = (await readJson(path.join(dir, "tokenizer_config.json"))) ?? {};
    return new Tokenizer(tokenizer as Json, config as Json);
  }

  /** Special tokens are those the checkpoint puts around a text, such as <s> before it. */
  encode(text: string, options: { specialTokens?: boolean } = {}): number[] {
    if (typeof text !== "string") {
      throw invalid("Tokenizer.encode", `text expected a string, got ${typeof text}`);
    }
    return this.#inner.encode(text, { add_special_tokens: options.specialTokens ?? true }).ids;
  }

  /**
   * Bytes that are no UTF-8 become U+FFFD. Spaces are left as they are: nothing is "cleaned up".
   */
  decode(ids: readonly number[], options: { specialTokens?: boolean } = {}): string {
    const checked = checkInts("Tokenizer.decode", "ids", ids);
    if (checked.length === 0) return "";
    return this.#inner.decode(Array.from(checked), {
      skip_special_tokens: !(options.specialTokens ?? false),
      clean_up_tokenization_spaces: false,
    });
  }
}
