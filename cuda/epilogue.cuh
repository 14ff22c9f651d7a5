// From unnormalised float32 rows to memory: final rows (sink logit, normalisation, rounding, lse)
// or partial ones for the combine.
#pragma once

#include "tile/ptx.cuh"
#include "work.cuh"

namespace flash_gqa::cuda {

constexpr int kStoreCols = 8;  // columns that a thread finishes at a time; divides head_dim

__device__ inline void load_cols(float (&x)[kStoreCols], const float* from) {
  const float4 low = reinterpret_cast<const float4*>(from)[0];
  const float4 high = reinterpret_cast<const float4*>(from)[1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

__device__ inline void store_cols(float* to, const float (&x)[kStoreCols]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

template <class Element>
__device__ void store_cols(Element* to, const float (&x)[kStoreCols]) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(ptx::pack<Element>(x[0], x[1]), ptx::pack<Element>(x[2], x[3]),
                 ptx::pack<Element>(x[4], x[5]), ptx::pack<Element>(x[6], x[7]));
}

// Several parts of one row, taken in order.
struct RowMerge {
  SoftmaxState state;
  float o[kStoreCols] = {};

  __device__ void add(const SoftmaxState& part, const float* part_o) {
    const SoftmaxState::Factors factors = state.merge(part);
    float x[kStoreCols];
    load_cols(x, part_o);
#pragma unroll
    for (int i = 0; i < kStoreCols; ++i) o[i] = o[i] * factors.mine + x[i] * factors.other;
  }
};

// Writes columns [col, col + kStoreCols) of a row whose keys are all merged. o_row is its index in
// lse; times head_dim: its offset in o.
template <class Element>
__device__ void store_row(const AttentionParams& params, int64_t o_row, int32_t head, int32_t col,
                          RowMerge row) {
  float scale = 1.0f;
  if (params.sink_logits != nullptr) scale = row.state.add_sink(params.sink_logits[head]);
  scale *= row.state.inverse_sum();
#pragma unroll
  for (int i = 0; i < kStoreCols; ++i) row.o[i] *= scale;
  store_cols(static_cast<Element*>(params.o) + o_row * params.head_dim + col, row.o);
  if (col == 0 && params.lse != nullptr) params.lse[o_row] = row.state.lse();
}

template <class Element>
__device__ void store_final(const AttentionParams& params, const Work& work, int32_t r, int32_t col,
                            const RowMerge& row) {
  const PackedRow at = work.row(r);
  store_row<Element>(params, work.o_row(params, at), at.head, col, row);
}

// A tile's rows as the warps leave them: kParts softmax states per row, each with its own output.
// The padding spreads the rows of a fragment over the banks.
template <int kParts, int kTileQ, int kHeadDim>
struct OutputStage {
  alignas(16) float o[kParts][kTileQ][kHeadDim + 8];
  SoftmaxState state[kParts][kTileQ];

  template <class Element, int kThreads>
  __device__ void store(const ForwardArgs& args, const Work& work) const {
    const int32_t chunks = args.params.head_dim / kStoreCols;
    for (int32_t i = threadIdx.x; i < work.num_rows * chunks; i += kThreads) {
      const int32_t r = i / chunks;
      const int32_t col = i % chunks * kStoreCols;
      RowMerge row;
#pragma unroll
      for (int part = 0; part < kParts; ++part) row.add(state[part][r], &o[part][r][col]);

      if (work.plan.num_splits == 1) {
        store_final<Element>(args.params, work, r, col, row);
      } else {
        const int64_t at = work.partial_row(args, work.split, r);
        store_cols(args.partial_o + at * args.params.head_dim + col, row.o);
        if (col == 0) args.partial_state[at] = row.state;
      }
    }
  }
};

}  // namespace flash_gqa::cuda
