// A real model writes text in this terminal, through flash-gqa's attention and its paged KV cache.
//   npm run demo -- --prompt "Call me Ishmael." --tokens 300

const path = require("node:path");
const { parseArgs } = require("node:util");

const USAGE = `npm run demo -- [options]

  --prompt TEXT       what to continue        (default: "In the beginning God created")
  --tokens N          tokens to write         (default: 300)
  --temperature T     0 takes the likeliest token each time (default: 0.8)
  --seed N            the same seed writes the same text    (default: 0)
  --device NAME       auto, cpu, cuda or cuda:N             (default: auto)
  --dtype NAME        float32, float16 or bfloat16          (default: the checkpoint's)
  --no-window         every token sees all that came before it
  --model DIR         another Llama, Mistral, Qwen2 or Qwen3 checkpoint
  --help`;

const OPTIONS = {
  prompt: { type: "string", default: "In the beginning God created" },
  tokens: { type: "string", default: "300" },
  temperature: { type: "string", default: "0.8" },
  seed: { type: "string", default: "0" },
  device: { type: "string", default: "auto" },
  dtype: { type: "string" },
  "no-window": { type: "boolean", default: false },
  model: { type: "string", default: path.join(__dirname, "..", "models", "gutenberg-7m") },
  help: { type: "boolean", default: false },
};

class UsageError extends Error {}

function readArguments() {
  let values;
  try {
    ({ values } = parseArgs({ options: OPTIONS }));
  } catch (error) {
    throw new UsageError(error.message);
  }
  const number = (name, accept, expected) => {
    const value = Number(values[name]);
    if (values[name].trim() !== "" && accept(value)) return value;
    throw new UsageError(`--${name} expected ${expected}, got "${values[name]}"`);
  };
  const oneOf = (name, pattern, expected) => {
    if (values[name] === undefined || pattern.test(values[name])) return values[name];
    throw new UsageError(`--${name} expected ${expected}, got "${values[name]}"`);
  };
  return {
    ...values,
    tokens: number("tokens", (n) => Number.isInteger(n) && n > 0, "a whole number above 0"),
    temperature: number("temperature", (t) => t >= 0 && t <= 100, "a number from 0 to 100"),
    seed: number("seed", (n) => Number.isSafeInteger(n) && n >= 0, "a whole number, 0 or more"),
    device: oneOf("device", /^(auto|cpu|cuda(:\d{1,3})?)$/, "auto, cpu, cuda or cuda:N"),
    dtype: oneOf("dtype", /^(float32|float16|bfloat16)$/, "float32, float16 or bfloat16"),
    window: !values["no-window"],
  };
}

/** One line on stderr that counts up where someone watches, and a plain one where nobody does. */
function showProgress(name) {
  if (!process.stderr.isTTY) {
    process.stderr.write(`loading ${name}\n`);
    return { update() {}, end() {} };
  }
  return {
    update({ loadedBytes, totalBytes }) {
      const percent = Math.floor((100 * loadedBytes) / totalBytes);
      process.stderr.write(`\rloading ${name}, ${(totalBytes / 1e6).toFixed(1)} MB: ${percent} %`);
    },
    end() {
      process.stderr.write("\r\x1b[K");
    },
  };
}

/** Streams the text; returns what it took and what the cache held at its end. */
async function write(model, prompt, options) {
  process.stdout.write(prompt);
  const tokens = model.tokenizer.encode(prompt);
  let first = 0;
  let held;
  for await (const part of model.generate({ tokens }, options)) {
    first ||= performance.now();
    process.stdout.write(part.text);
    tokens.push(part.token);
    held = model.cache.stats();
  }
  return { tokens, seconds: (performance.now() - first) / 1000, held };
}

/** Seconds until the token after `tokens` is there. */
async function timePrefill(model, tokens, signal) {
  const start = performance.now();
  for await (const _ of model.generate({ tokens }, { maxTokens: 1, signal }));
  return (performance.now() - start) / 1000;
}

function report(model, written, promptLength, prefill) {
  const { device, cache, dtype } = model;
  const { pageSize, pageBytes, numLayers, window } = cache.layout;
  const decoded = written.tokens.length - promptLength - 1;
  const rate = (tokens, seconds) => `${(tokens / seconds).toFixed(0)} tokens/s`;
  const size = (pages) =>
    `${pages} page${pages === 1 ? "" : "s"}, ${(pages * numLayers * pageBytes) / 1024} KiB`;
  const withWindow = window === 0 ? "" : ` with the window of ${window}; without it `;
  const oneByOne = `${rate(decoded, written.seconds)} (${decoded} tokens, one at a time)`;
  const inFull = Math.ceil((written.tokens.length - 1) / pageSize);
  const lines = [
    ["prefill", `${rate(prefill.tokens, prefill.seconds)} (${prefill.tokens} tokens at once)`],
    ["decode", decoded > 0 ? oneByOne : "nothing to measure, the text has one token"],
    ["device", device.reason],
    ["linear", `${device.info().linear}, ${dtype}`],
    ["K/V held", size(written.held.pages.used) + withWindow + (withWindow && size(inFull))],
  ];
  return lines.map(([name, value]) => `${name.padEnd(10)}${value}`).join("\n");
}

async function main() {
  const args = readArguments();
  if (args.help) return console.log(USAGE);
  const { Device } = require("flash-gqa");
  const { Llama } = require("flash-gqa/llama");

  const interrupt = new AbortController();
  process.once("SIGINT", () => interrupt.abort());
  const progress = showProgress(path.basename(args.model));
  const device = await Device.open(args.device);
  const model = await Llama.load(args.model, {
    device,
    dtype: args.dtype,
    window: args.window,
    onProgress: progress.update,
  }).finally(progress.end);

  const { signal } = interrupt;
  const { tokens: maxTokens, temperature, seed } = args;
  const written = await write(model, args.prompt, {
    maxTokens,
    temperature,
    topP: 0.95,
    seed,
    signal,
  });
  const again = written.tokens.slice(0, model.contextLength - 1);
  const prefill = { tokens: again.length, seconds: await timePrefill(model, again, signal) };
  const promptLength = model.tokenizer.encode(args.prompt).length;
  console.log(`\n\n${report(model, written, promptLength, prefill)}`);
  model.dispose();
  device.dispose();
}

// `npm run demo | head` closes the pipe when it has read enough.
process.stdout.on("error", () => process.exit(0));

main().catch((error) => {
  if (error instanceof UsageError) {
    console.error(`${error.message}\n\n${USAGE}`);
    process.exitCode = 2;
  } else if (error.code === "ABORTED") {
    console.error("\ninterrupted");
    process.exitCode = 130;
  } else if (error.code === "MODULE_NOT_FOUND") {
    console.error(`${error.message.split("\n")[0]}\nBuild it first: npm ci, or npm run compile`);
    process.exitCode = 1;
  } else {
    console.error(error.name === "GqaError" ? `\n${error.message}` : error);
    process.exitCode = 1;
  }
});
