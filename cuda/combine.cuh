// The second half of a split item: its parts merged in split order, whatever order they arrived in.
// One warp per row, eight columns per lane.
#pragma once

#include <new>

#include "epilogue.cuh"

namespace flash_gqa::cuda {

constexpr int kCombineRows = 4;  // rows, and warps, per block

template <class Element>
__global__ void __launch_bounds__(32 * kCombineRows)
    attention_combine_kernel(const __grid_constant__ ForwardArgs args, int32_t blocks_per_item) {
  alignas(16) __shared__ unsigned char storage[sizeof(Work)];
  Work& work = *reinterpret_cast<Work*>(storage);
  if (threadIdx.x == 0) new (&work) Work(args, blockIdx.x / blocks_per_item, 0);
  __syncthreads();
  const int32_t r = blockIdx.x % blocks_per_item * kCombineRows + threadIdx.x / 32;
  const int32_t col = threadIdx.x % 32 * kStoreCols;
  if (!work.active || work.plan.num_splits == 1 || r >= work.num_rows) return;
  if (col >= args.params.head_dim) return;

  RowMerge row;
#pragma unroll 4
  for (int32_t split = 0; split < work.plan.num_splits; ++split) {
    const int64_t at = work.partial_row(args, split, r);
    row.add(args.partial_state[at], args.partial_o + at * args.params.head_dim + col);
  }
  store_final<Element>(args.params, work, r, col, row);
}

template <class Element>
cudaError_t launch_combine(const ForwardArgs& args, int64_t items, cudaStream_t stream) {
  const int32_t blocks_per_item = (args.item_rows + kCombineRows - 1) / kCombineRows;
  attention_combine_kernel<Element>
      <<<items * blocks_per_item, 32 * kCombineRows, 0, stream>>>(args, blocks_per_item);
  return cudaGetLastError();
}

}  // namespace flash_gqa::cuda
