// Attention forward with mma.sync or FFMA and cp.async (FlashAttention-2's algorithm: Dao 2023),
// for every mask, dense and paged keys, prefill and decode. Launches come from family.cuh.
#pragma once

#include <new>

#include "../epilogue.cuh"
#include "../tile/softmax.cuh"
#include "kv_pipeline.cuh"
#include "traits.cuh"

namespace flash_gqa::cuda {

template <class T>
struct SharedStorage {
  struct Inputs {
    SwizzledTile<typename T::Element, T::Math::kTileQ, T::kHeadDim> q;  // [kTileQ, kHeadDim]
    KvTiles<T> kv;
    typename T::Math::Scratch scratch;
  };

  Work work;
  KeyRows<T> keys;
  union {
    Inputs in;
    OutputStage<T::Math::kKeyParts, T::Math::kTileQ, T::kHeadDim> out;  // when the keys are done
  };
};

template <class T, class Tile>
__device__ void load_q(const AttentionParams& params, const Work& work, Tile& q) {
  using Element = typename T::Element;
  const auto* from = static_cast<const Element*>(params.q);
  for (int at = threadIdx.x; at < T::Math::kTileQ * Tile::kChunks; at += T::Math::kThreads) {
    const int r = at / Tile::kChunks;
    const int col = at % Tile::kChunks * Tile::kChunk;
    const bool valid = r < work.num_rows && col < params.head_dim;
    ptx::cp_async_16(q.address(r, at % Tile::kChunks),
                     valid ? from + work.q_offset(params, work.row(r)) + col : from, valid);
  }
}

template <class T>
__global__ void __launch_bounds__(T::Math::kThreads, T::kBlocksPerSm)
    attention_fwd_kernel(const __grid_constant__ ForwardArgs args) {
  extern __shared__ __align__(128) unsigned char smem[];
  auto& shared = *reinterpret_cast<SharedStorage<T>*>(smem);
  using Math = typename T::Math;

  if (threadIdx.x == 0)
    new (&shared.work) Work(args, blockIdx.x / args.max_splits, blockIdx.x % args.max_splits);
  __syncthreads();
  const Work& work = shared.work;
  if (!work.active) return;

  load_q<T>(args.params, work, shared.in.q);
  KvPipeline<T> kv{args.params, work, shared.in.kv, shared.keys};
  kv.start();

  const Math math(threadIdx.x);
  SoftmaxState state[Math::kRows];
  float o[Math::kRows][Math::kCols] = {};
  for (int32_t i = 0; i < work.num_tiles; ++i) {
    kv.advance(i);

    float s[Math::kRows][Math::kKeys] = {};
    math.multiply_qk(s, shared.in.q, kv.k(i));
    const float scale = make_logits<Math>(s, args.params.sm_scale, args.params.soft_cap);
    if (!tile_is_full(work.common, work.first_key(i), T::kTileKv))
      mask_rows<T::kTileKv>(s, math, work.first_key(i),
                            [&](int32_t r) { return work.keys_of_row(r); });
    if (const uint64_t bad_keys = kv.bad_keys(i); bad_keys != 0) mask_keys(s, math, bad_keys);

    update_softmax<Math>(s, scale, state, o);
    math.multiply_pv(o, s, kv.v(i), shared.in.scratch);
  }
  reduce_sums<Math>(state);

  ptx::cp_async_wait<0>();
  __syncthreads();  // the inputs are dead: their memory takes the outputs
#pragma unroll
  for (int r = 0; r < Math::kRows; ++r) {
    float* row = shared.out.o[math.key_part()][math.row(r)];
#pragma unroll
    for (int j = 0; j < Math::kCols; j += 2)
      *reinterpret_cast<float2*>(row + math.first_col() + Math::col_step(j)) =
          make_float2(o[r][j], o[r][j + 1]);
    if (math.leads_row()) shared.out.state[math.key_part()][math.row(r)] = state[r];
  }
  __syncthreads();
  shared.out.template store<typename T::Element, Math::kThreads>(args, work);
}

}  // namespace flash_gqa::cuda
