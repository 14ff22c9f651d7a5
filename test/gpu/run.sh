#!/usr/bin/env bash
# All that needs a GPU, in one run: builds the addon with plain CMake, then checks what CI cannot. Each part writes
# $OUT/<part>.log (and .json, from Vitest); the last lines are a table of what passed, with the names of what did not.
#
#   OUT=folder test/gpu/run.sh [part ...]                         (default: all)
#
#   build     the addon, with ptxas's register counts in $OUT/build.log
#   kernels   the table of docs/kernel-table.md in $OUT/kernels.md; fails where a kernel spills that must not
#   checks    the parts below, side by side: suite small sm80 poison plain programs long driver
#             memcheck memcheck80 synccheck initcheck bulkstore demo
#   bench     npm run bench -- --record, alone on the machine, its record in $OUT/bench.json too; BENCH_FLAGS: more arguments
#
# Needs node_modules (Vitest, Vite, fast-check, the Node-API headers), dist/ compiled, nvcc, CMake, Ninja.
set -uo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
OUT=${OUT:-$root/build/gpu-run}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export FLASH_GQA_CUDA_ARCHS=${FLASH_GQA_CUDA_ARCHS:-90a-real}
# A stuck part must not take the others with it.
LIMIT=${LIMIT:-300}

CHECKS="suite small sm80 poison plain programs long driver memcheck memcheck80 synccheck initcheck bulkstore demo"
parts=" ${*:-build kernels checks bench} "
parts=${parts/ checks / $CHECKS }
wants() { [[ $parts == *" ${1%.*} "* ]]; }

# part NAME COMMAND...: in the background, its output and its time in files.
part() {
  local name=$1
  shift
  wants "$name" || return 0
  (
    SECONDS=0
    timeout -k 5 "$LIMIT" "$@" >"$OUT/$name.log" 2>&1
    echo "$? $SECONDS" >"$OUT/$name.status"
  ) &
}
tests() {
  local name=$1 config=$2
  shift 2
  part "$name" env FLASH_GQA_TEST_DEVICE=cuda "${variables[@]}" \
    node node_modules/vitest/vitest.mjs run --config "$config" \
    --reporter=default --reporter=json --outputFile.json="$OUT/$name.json" "$@"
}
# The whole suite, in two processes. On files of different length, so that neither waits long for the other.
halves() {
  for half in 1 2; do
    tests "$1.$half" vitest.config.mts --shard="$half/2"
  done
}
sanitizer() {
  local name=$1 tool=$2
  shift 2
  part "$name" env "${variables[@]}" compute-sanitizer --tool "$tool" --print-limit 100000 --log-file \
    "$OUT/$name.report" "$@" node test/gpu/sanitize.js cuda
}

if wants build; then
  part build bash -c '
    cmake -G Ninja -B build/gpu -DCMAKE_BUILD_TYPE=Release -DFLASH_GQA_CUDA=on \
      -DFLASH_GQA_CUDA_ARCHS="$FLASH_GQA_CUDA_ARCHS" -DFLASH_GQA_OUTPUT_DIR="$PWD/build/Release" \
      -DCMAKE_CUDA_FLAGS="-Xptxas=-v" &&
    cmake --build build/gpu --verbose'
  wait
  # A missing symbol shows when it is called, or here.
  if nm -D --undefined-only build/Release/flash_gqa.node | grep flash_gqa >>"$OUT/build.log"; then
    echo "1 0" >"$OUT/build.status"
  fi
  [[ $(cat "$OUT/build.status") == "0 "* ]] || { tail -40 "$OUT/build.log"; exit 1; }
fi
# No test may find dist/ older than lib/: there is no compiler for it here.
find dist -type f -exec touch {} +

main=vitest.config.mts long=vitest.long.config.mts
variables=()
halves suite
tests programs $long test/long/random-programs
tests long $long test/long/captured-steps test/long/perplexity
variables=(FLASH_GQA_MAX_SMEM=101376)
halves small
variables=(FLASH_GQA_SM=80)
tests sm80 $main test/attention test/golden test/cuda test/kv-cache test/llama
variables=(FLASH_GQA_POISON=1)
tests poison $main test/attention test/kv-cache test/cache test/ops test/nn test/linear test/llama
variables=(FLASH_GQA_CUBLASLT=off)
tests plain $main test/nn test/linear test/llama test/golden-layers
# Without cuBLASLt, whose results the tool cannot judge: bulk_store.cu says why, and shows that it is still so.
sanitizer initcheck initcheck
part bulkstore bash -c '
  nvcc -gencode=arch=compute_90a,code=sm_90a -o build/bulk_store test/gpu/bulk_store.cu -cudart static &&
  compute-sanitizer --tool initcheck build/bulk_store | tee "$0/bulkstore.txt" | grep -q "^sum 496, no error" &&
  grep -q "Uninitialized" "$0/bulkstore.txt" && echo "initcheck calls bulk stores uninitialised, as known"' "$OUT"
variables=()
sanitizer memcheck memcheck
sanitizer synccheck synccheck
variables=(FLASH_GQA_SM=80)
sanitizer memcheck80 memcheck
variables=()
part driver bash -c '
  cmake -G Ninja -S test/gpu -B build/gpu-driver -DCMAKE_CUDA_ARCHITECTURES="$FLASH_GQA_CUDA_ARCHS" &&
  cmake --build build/gpu-driver && build/gpu-driver/attention_driver resident &&
  build/gpu-driver/attention_driver check'
# Greedy text in float32 must not depend on the device.
part demo bash -c '
  for device in cpu cuda; do
    node examples/demo.js --device $device --dtype float32 --temperature 0 --tokens 300 >"$0/demo-$device.txt" || exit 1
  done
  text() { sed "/^prefill  /,\$d" "$0/demo-$1.txt"; }
  diff <(text cpu) <(text cuda) && [ "$(text cpu | wc -w)" -gt 100 ] && echo "the same text"' "$OUT"
# How kernels are launched is all that is asked of the profiler: it leaves the clocks alone, and needs no quiet.
part kernels bash -c '
  ncu --clock-control none --csv --metrics launch__shared_mem_per_block_dynamic,launch__block_size \
    node test/gpu/sanitize.js cuda >"$0/launches.csv" 2>"$0/launches.log"
  node scripts/kernel-table.js "$0/build.log" "$0/launches.csv" >"$0/kernels.md" &&
  echo "$(grep -c "sm_" "$0/kernels.md") kernels"' "$OUT"
wait

LIMIT=${BENCH_LIMIT:-420}
# shellcheck disable=SC2086 — flags are words
part bench node bench/run.js --device cuda --record ${BENCH_FLAGS:-}
wait
wants bench && cp "$(ls -t bench/results/*.json | head -1)" "$OUT/bench.json"
node test/gpu/summary.js "$OUT" | tee "$OUT/summary.txt"
exit "${PIPESTATUS[0]}"
