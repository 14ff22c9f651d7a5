// Random shapes and options of attention(), dense, ragged and paged at once: the CPU against float64, and CUDA against
// the CPU. The seed of each is its name: a failure is run again with FLASH_GQA_SEED; FLASH_GQA_PROGRAMS is how many.

import { afterAll, describe, it } from "vitest";
import { Device } from "../../lib/index";
import { expectClose, expectSameBits } from "../support/compare";
import { cuda, testDevice } from "../support/device";
import {
  drawProgram,
  exactResult,
  type Program,
  type ProgramResult,
  runProgram,
  tolerance,
} from "../support/program";

const device = await testDevice();
const cpu = await Device.open("cpu");
afterAll(() => cpu.dispose());

const { FLASH_GQA_SEED: seed, FLASH_GQA_PROGRAMS: programs } = process.env;
const first = Number(seed ?? 1);
const count = Number(programs ?? (seed !== undefined ? 1 : cuda ? 1000 : 2000));

function eachSeed(skip: boolean, needs: string, check: (program: Program) => Promise<void>): void {
  for (let from = first; from < first + count; from += 50) {
    const until = Math.min(from + 50, first + count);
    it.skipIf(skip)(`seeds ${from} to ${until - 1} (${needs})`, async () => {
      for (let seed = from; seed < until; seed++) {
        await check(drawProgram(seed)).catch((error) => {
          throw new Error(`seed ${seed}: ${error.message}`, { cause: error });
        });
      }
    });
  }
}

function expectSamePaged(result: ProgramResult): void {
  const bits = (x: Float32Array) => new Uint32Array(x.buffer, x.byteOffset, x.length);
  expectSameBits(bits(result.pagedO), bits(result.o), "paged o");
  expectSameBits(bits(result.pagedLse), bits(result.lse), "paged lse");
}

describe("random programs on the CPU agree with float64", () => {
  eachSeed(cuda, "needs the CPU", async (program) => {
    const result = await runProgram(device, program);
    const exact = exactResult(program);
    const atol = tolerance(program);
    expectClose(result.lse, exact.lse, atol.lse, "lse");
    expectClose(result.o, exact.o, atol.o, "o");
    expectSamePaged(result);
  });
});

describe("random programs on CUDA agree with the CPU", () => {
  eachSeed(!cuda, "needs a GPU", async (program) => {
    const [expected, result] = await Promise.all([
      runProgram(cpu, program),
      runProgram(device, program),
    ]);
    const atol = tolerance(program);
    // Either back end may be golden's tolerance in float32 away from the exact logits, and of two neighbours in the
    // stored type each may take another one: from 4 on those of bfloat16 lie farther apart than the tolerance.
    const largest = expected.o.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
    const step = program.dtype === "bfloat16" && largest >= 4 ? largest * 2 ** -7 : 0;
    const lse = 2 * atol.lse;
    const o = Math.max(atol.o + atol.lse, step);
    expectClose(result.lse, expected.lse, lse, "lse");
    expectClose(result.o, expected.o, o, "o");
    // The copy engine of the Hopper kernel takes pages of 8 keys and more; smaller ones go to other kernels.
    if (program.pageSize >= 8) return expectSamePaged(result);
    expectClose(result.pagedLse, expected.lse, lse, "paged lse");
    expectClose(result.pagedO, expected.o, o, "paged o");
  });
});
