// The peers' process: Python with PyTorch on the same GPU, asked line by line, so that its rounds stand between ours.

const { spawn } = require("node:child_process");
const path = require("node:path");
const readline = require("node:readline");

const PROGRAM = path.join(__dirname, "peers", "torch_sdpa.py");

class Peers {
  #child;
  #answers;

  constructor(child) {
    this.#child = child;
    this.#answers = readline.createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  /** { peers, info }, or { reason } where PyTorch with CUDA is not to be had. */
  static async start() {
    const python = process.env.PYTHON ?? "python3";
    const env = { ...process.env, PYTHONDONTWRITEBYTECODE: "1" }; // no __pycache__ in the sources
    const child = spawn(python, [PROGRAM], { env, stdio: ["pipe", "pipe", "inherit"] });
    const failed = new Promise((resolve) => child.once("error", resolve));
    child.stdin.on("error", () => {}); // it has ended: its answers end too
    const peers = new Peers(child);
    const info = await Promise.race([peers.#next(), failed.then((error) => error)]);
    if (!(info instanceof Error) && info.error === undefined) return { peers, info };
    child.kill();
    return { reason: info.error ?? info.message };
  }

  async ask(question) {
    this.#child.stdin.write(`${JSON.stringify(question)}\n`);
    const answer = await this.#next();
    if (answer.error !== undefined) throw new Error(`${PROGRAM}: ${answer.error}`);
    return answer;
  }

  /** One round of what was prepared last: microseconds per call. */
  async measure(impl) {
    return (await this.ask({ do: "measure", impl })).us;
  }

  stop() {
    this.#child.stdin.end();
  }

  async #next() {
    const { value, done } = await this.#answers.next();
    return done ? { error: "it has ended" } : JSON.parse(value);
  }
}

module.exports = { Peers };
