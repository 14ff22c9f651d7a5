// Attention of few rows against many keys: K and V are read from memory once, by warps that share
// nothing while they read, and the parts are merged in the same launch. docs/decode.md has the
// design, the floors and the log.
#pragma once

#include "../dependent_launch.cuh"
#include "../tile/softmax.cuh"
#include "division.cuh"
#include "merge.cuh"
#include "slabs.cuh"

namespace flash_gqa::cuda::decode {

// The 16 rows of one pair that a block works on: rows first_row .. first_row + rows - 1.
struct RowTile {
  int32_t kv_head;
  int32_t first_row;
  int32_t rows;
};

// The queries of a row tile, as operand A of every product with its keys, in registers: shared memory
// is the keys'. Columns that do not exist are zeros; rows that do not exist repeat the last.
template <class T>
struct Queries {
  uint32_t a[1][T::kHeadDim / 16][4];

  __device__ Queries() {}
  __device__ void load(const DecodeArgs& args, const Pair& pair, const RowTile& tile) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t r = tile.first_row + min_i32(i * 8 + lane / 4, tile.rows - 1);
      const int32_t token = args.token_of(r);
      const int32_t head = tile.kv_head * args.group_size + r - token * args.group_size;
      const auto* q = reinterpret_cast<const uint32_t*>(
          static_cast<const typename T::Element*>(args.params.q) +
          (static_cast<int64_t>(pair.sequence.q_start) + token) * args.params.q_stride_token +
          static_cast<int64_t>(head) * args.params.head_dim + lane % 4 * 2);
#pragma unroll
      for (int c = 0; c < T::kHeadDim / 8; ++c)
        a[0][c / 2][c % 2 * 2 + i] = c * 8 < args.params.head_dim ? q[c * 4] : 0;
    }
  }
};

template <class T>
struct SharedStorage {
  Slab<T> ring[kWarps][T::kStages];
  SoftmaxState state[kWarps][kRowsPerTile];
  uint32_t bad[kWarps][T::kStages];
  // The pair that this block begins with, the one that it ends with, and the one at hand.
  SharedPair pairs[3];
  int32_t ignored_fault;  // of what is read before the launches in front are done
};

// Where a warp leaves its part of a 16-row tile: in the place of one slab, which has the same size.
// 32-byte units are permuted by the row, so that neither side meets bank conflicts.
template <class T>
__device__ __forceinline__ float* output_at(const Slab<T>& slab, int r, int col) {
  static_assert(sizeof(Slab<T>) == kRowsPerTile * T::kHeadDim * sizeof(float));
  constexpr int kPermuted = T::kHeadDim % 64 == 0 ? 8 : 4;
  auto* data = reinterpret_cast<float*>(const_cast<Slab<T>*>(&slab));
  return data + r * T::kHeadDim + (col / 8 ^ r % kPermuted) * 8 + col % 8;
}

// A block's share of one pair, up to the point where its warps have left their parts in shared
// memory: slabs [first, last).
//
// While `guessed`, the launches in front may still be running, and all that was read so far is a
// guess: it is good enough to know which keys to ask for behind them, since every guess lies within
// its buffer. While those are on their way, holds() looks again. False: it does not hold.
template <class T, class Holds>
__device__ __forceinline__ bool attend(SharedStorage<T>& shared, const DecodeArgs& args,
                                       const Pair& pair, const RowTile& rows, int32_t first,
                                       int32_t last, int32_t stride, bool guessed,
                                       const Holds& holds) {
  using Math = typename T::Math;
  const int warp = threadIdx.x / 32;
  const AttentionParams& params = args.params;
  KvSource source(params.kv, pair.sequence, params.num_kv_heads, rows.kv_head, params.head_dim,
                  guessed ? &shared.ignored_fault : params.fault);
  const TileRange tiles(pair.visible, kSlabKeys);
  const int32_t num_slabs = min_i32(last, tiles.count());  // a pair that sees no key has none
  SlabRing<T> ring(params, source, tiles, pair.visible, shared.ring[warp], shared.bad[warp],
                   first + warp, num_slabs, stride);
  if (guessed) wait_for_prerequisites();
  Queries<T> queries;
  for (bool first_time = true;; first_time = false) {
#pragma unroll 1
    for (int stage = 0; stage < T::kStages; ++stage) ring.ask(stage);
    if (first_time) queries.load(args, pair, rows);
    if (!guessed || !first_time) break;
    // One verdict for the block: warps read at different times, and may have guessed differently.
    if (!__syncthreads_and(holds())) {
      ring.rewind();
      return false;
    }
    source.fault = params.fault;
    if (ring.look_up()) break;
    ring.rewind();
  }
  const KeyRange common = pair.mask.common(0, pair.sequence.q_len - 1);
  const Math math(threadIdx.x % 32);
  SoftmaxState state[Math::kRows];
  float o[Math::kRows][Math::kCols] = {};
  int stage = 0;
#pragma unroll 1
  for (int32_t i = first + warp; i < num_slabs; i += stride) {
    ring.wait();
    Slab<T>& slab = shared.ring[warp][stage];
    float s[Math::kRows][Math::kKeys] = {};
    math.multiply_qk(s, queries.a, slab.k);
    const float scale = make_logits<Math>(s, params.sm_scale, params.soft_cap);
    if (!tile_is_full(common, tiles.key(i), kSlabKeys)) [[unlikely]]
      mask_rows<kSlabKeys>(s, math, tiles.key(i), [&](int32_t r) {
        return pair.mask.row(args.token_of(rows.first_row + min_i32(r, rows.rows - 1)));
      });
    if (const uint32_t bad = shared.bad[warp][stage]; bad != 0) [[unlikely]]
      mask_keys(s, math, bad);
    update_softmax<Math>(s, scale, state, o);
    typename Math::Scratch scratch;
    math.multiply_pv(o, s, slab.v, scratch);
    __syncwarp();
    ring.ask(stage);
    if (++stage == T::kStages) stage = 0;
  }
  reduce_sums<Math>(state);

  ptx::cp_async_wait<0>();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    const int r = math.row(i);
    if (r >= rows.rows) continue;
#pragma unroll
    for (int j = 0; j < Math::kCols; j += 2)
      *reinterpret_cast<float2*>(
          output_at(shared.ring[warp][0], r, math.first_col() + Math::col_step(j))) =
          make_float2(o[i][j], o[i][j + 1]);
    if (math.leads_row()) shared.state[warp][r] = state[i];
  }
  return true;
}

// Merges the parts that the block's warps have left: into the result, or into this block's part.
template <class T>
__device__ __forceinline__ void merge_warps(const SharedStorage<T>& shared, const DecodeArgs& args,
                                            const SharedPair& pair) {
  constexpr int kQuads = T::kHeadDim / kQuad;
#pragma unroll 1
  for (int32_t task = threadIdx.x; task < pair.out.rows * kQuads; task += kThreads) {
    const int32_t r = task / kQuads;
    const int32_t col = task % kQuads * kQuad;
    SoftmaxState state;
    float max = minus_infinity();
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) max = fmaxf(max, shared.state[warp][r].max);
    state.raise_max(max);
    float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const float* part = output_at(shared.ring[warp][0], r, col);
      state_add(state, o, shared.state[warp][r], *reinterpret_cast<const float4*>(part));
    }
    if (col >= args.params.head_dim) continue;
    if (pair.parts == 1) {
      pair.out.template store<typename T::Element>(args, r, col, state, o);
    } else {
      pair.store_part(args, task, state, o);
    }
  }
}

// Parameters come from memory too: each launch has its own copy, which nothing has read yet. They are
// fetched while the launch before is still running; `sink` makes the compiler believe in it.
__device__ __forceinline__ void touch_parameters(const DecodeArgs& args, uint32_t& sink) {
  constexpr int kWords = sizeof(DecodeArgs) / 4;
  const auto* words = reinterpret_cast<const uint32_t*>(&args);
  uint32_t all = words[kWords - 1];
#pragma unroll
  for (int i = 0; i < kWords; i += 16) all ^= words[i];
  if (threadIdx.x == 0) *static_cast<volatile uint32_t*>(&sink) = all;
}

template <class T>
__global__ void __launch_bounds__(kThreads, T::kBlocksPerSm)
    attention_decode_kernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) unsigned char smem[];
  auto& shared = *reinterpret_cast<SharedStorage<T>*>(smem);
  allow_dependents();
  touch_parameters(args, shared.bad[0][0]);

  const auto team = static_cast<int32_t>(blockIdx.y);
  const int32_t batch = args.params.batch.batch_size;
  // Lengths are read, and all that follows from them is worked out, while the launch before is still
  // running. Large batches take longer than it pays.
  bool guessed = batch <= 32;
  if (!guessed) wait_for_prerequisites();
  int num_pending = 0;
  for (auto x = static_cast<int32_t>(blockIdx.x); x < args.params.num_kv_heads * args.row_tiles;) {
    Division division(args, team, guessed ? &shared.ignored_fault : args.params.fault);
    int32_t left = division.units_per_team;
    int32_t& b = division.b;
    int32_t& unit = division.unit;
    int64_t& b_first = division.b_first;
    Pair& pair = division.pair;
    bool held = true;
    if (guessed && b >= batch) {  // as attend() does, for a warp that sees nothing to do
      wait_for_prerequisites();
      held = __syncthreads_and(false);
    }
    while (held && left > 0 && b < batch) {
      const int32_t units = division.units(pair.rounds());
      if (unit >= units) {
        unit -= units;
        b_first += units;
        if (++b < batch) pair = Pair(args, b, args.params.fault);
        continue;
      }
      const int32_t taken = min_i32(left, units - unit);
      const int32_t kv_head = args.row_tiles == 1 ? x : x / args.row_tiles;
      const int32_t first_row = (x - kv_head * args.row_tiles) * kRowsPerTile;
      const RowTile rows{kv_head, first_row, min_i32(kRowsPerTile, pair.rows - first_row)};
      // Where the sequence begins and ends, counted from this team's first unit.
      const int32_t per_team = division.units_per_team;
      const auto begins = static_cast<int32_t>(b_first - static_cast<int64_t>(team) * per_team);
      const bool one = per_team == 1;
      const int32_t before = begins >= 0 ? 0 : one ? -begins : (-begins + per_team - 1) / per_team;
      const int32_t behind = one ? begins + units - 1 : (begins + units - 1) / per_team;
      SharedPair& shared_pair = shared.pairs[num_pending];
      if (threadIdx.x == 0)
        shared_pair =
            SharedPair(args, {pair.sequence.q_start, kv_head, first_row, max_i32(0, rows.rows)}, x,
                       T::kHeadDim / kQuad, team - before, before + behind + 1, before);

      // A whole share of one sequence is every units-th round of it, so that all blocks move through
      // memory together.
      const int32_t first = unit * division.rounds_per_unit * kWarps;
      const int32_t last = (unit + taken) * division.rounds_per_unit * kWarps;
      held = attend<T>(shared, args, pair, rows, one ? unit * kWarps : first,
                       one ? pair.slabs : last, one ? units * kWarps : kWarps, guessed, [&] {
                         return batch == 1
                                    ? pair.same_as(Pair(args, 0, args.params.fault))
                                    : division.same_as(Division(args, team, args.params.fault));
                       });
      guessed = false;
      if (!held) break;
      __syncthreads();
      merge_warps<T>(shared, args, shared_pair);
      if (before + behind > 0) ++num_pending;
      unit += taken;
      left -= taken;
      if (left > 0) __syncthreads();  // the ring takes slabs again
    }
    guessed = false;
    if (held) x += args.team_blocks;
    __syncthreads();  // the ring takes slabs again
  }
  for (int i = 0; i < num_pending; ++i) shared.pairs[i].template finish<T>(args);
}

}  // namespace flash_gqa::cuda::decode
