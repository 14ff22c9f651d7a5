// Attention of few rows against many keys: K and V are read from memory once, by warps that share
// nothing while they read, and the parts are merged in the same launch. docs/decode.md has the
// design, the floors and the log.
#pragma once

#include "../dependent_launch.cuh"
#include "../tile/softmax.cuh"
#include "tma_ring.cuh"

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
  using Element = typename T::Element;
  static constexpr int kChunks = T::kHeadDim / 8;  // of 16 bytes in a row
  static constexpr int kCopies = (kRowsPerTile * kChunks + kThreads - 1) / kThreads;

  uint32_t a[1][T::kHeadDim / 16][4];
  const Element* from[kCopies];

  __device__ Queries() {}

  // Where this thread's chunks are.
  __device__ void find(const DecodeArgs& args, const Pair& pair, const RowTile& tile) {
    if constexpr (T::kTma) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int at = threadIdx.x + i * kThreads;
        const int chunk = at % kChunks;
        from[i] = row(args, pair, tile, at / kChunks) + chunk * 8;
        if (chunk * 8 >= args.params.head_dim || at >= kRowsPerTile * kChunks) from[i] = nullptr;
      }
    }
  }
  // Through shared memory, a chunk by each thread; or at once.
  __device__ void ask(SharedStorage<T>& shared, const DecodeArgs& args, const Pair& pair,
                      const RowTile& tile) {
    if constexpr (T::kTma) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int at = threadIdx.x + i * kThreads;
        if (at < kRowsPerTile * kChunks)
          ptx::cp_async_16(shared.queries.address(at / kChunks, at % kChunks),
                           from[i] != nullptr ? from[i] : args.params.q, from[i] != nullptr);
      }
    } else {
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto* q =
            reinterpret_cast<const uint32_t*>(row(args, pair, tile, i * 8 + lane / 4) + lane % 4 * 2);
#pragma unroll
        for (int c = 0; c < T::kHeadDim / 8; ++c)
          a[0][c / 2][c % 2 * 2 + i] = c * 8 < args.params.head_dim ? q[c * 4] : 0;
      }
    }
  }
  // A barrier of the block stands between arrived() and take().
  __device__ void arrived() const {
    if constexpr (T::kTma) ptx::cp_async_wait_all();
  }
  __device__ void take(const SharedStorage<T>& shared) {
    if constexpr (T::kTma) {
      const int lane = threadIdx.x % 32;
      const uint32_t at = shared.queries.address(lane % 16, lane / 16);
#pragma unroll
      for (int d = 0; d < T::kHeadDim / 16; ++d)
        ptx::ldmatrix_x4(a[0][d], shared.queries.move(at, 0, 2 * d));
    }
  }

 private:
  __device__ static const Element* row(const DecodeArgs& args, const Pair& pair,
                                       const RowTile& tile, int32_t i) {
    const int32_t r = tile.first_row + min_i32(i, tile.rows - 1);
    const int32_t token = args.token_of(r);
    const int32_t head = tile.kv_head * args.group_size + r - token * args.group_size;
    return static_cast<const Element*>(args.params.q) +
           (static_cast<int64_t>(pair.sequence.q_start) + token) * args.params.q_stride_token +
           static_cast<int64_t>(head) * args.params.head_dim;
  }
};

// Where a warp leaves its part of a 16-row tile: in the place of one slab, which has the same size.
// 32-byte units are permuted by the row, so that neither side meets bank conflicts.
template <class T>
__device__ __forceinline__ float* output_at(const Slab<T>& slab, int r, int col) {
  static_assert(sizeof(Slab<T>) >= kRowsPerTile * T::kHeadDim * sizeof(float));
  constexpr int kPermuted = T::kHeadDim % 64 == 0 ? 8 : 4;
  auto* data = reinterpret_cast<float*>(const_cast<Slab<T>*>(&slab));
  return data + r * T::kHeadDim + (col / 8 ^ r % kPermuted) * 8 + col % 8;
}

template <class T>
__device__ __forceinline__ Slab<T>* ring_of(SharedStorage<T>& shared, const DecodeArgs& args,
                                            int warp) {
  return shared.ring + warp * (T::kTma ? args.stages : T::kStages);
}

// A block's share of one pair, up to the point where its warps have left their parts in shared
// memory: slabs [first, last).
//
// While `guessed`, the launches in front may still be running, and all that was read so far is
// a guess: it is good enough to know which keys to ask for behind them, since every guess lies within
// its buffer. While those are on their way, everything is read again. False: the guess was wrong.
template <class T>
__device__ __forceinline__ bool attend(SharedStorage<T>& shared, const DecodeArgs& args,
                                       uint32_t& parities, const Pair& pair, const RowTile& rows,
                                       int32_t first, int32_t last, int32_t stride, bool guessed,
                                       const Lengths& guess) {
  using Math = typename T::Math;
  using Ring = std::conditional_t<T::kTma, TmaRing<T>, AsyncRing<T>>;
  const int warp = threadIdx.x / 32;
  const AttentionParams& params = args.params;
  KvSource source(params.kv, pair.sequence, params.num_kv_heads, rows.kv_head, params.head_dim,
                  guessed ? &shared.ignored_page_fault : params.fault);
  const TileRange tiles(pair.visible, kSlabKeys);
  const int32_t num_slabs = min_i32(last, tiles.count());  // a pair that sees no key has none
  const int stages = T::kTma ? args.stages : T::kStages;
  Slab<T>* const slabs = ring_of(shared, args, warp);
  Ring ring(shared, args, warp, parities, pair.sequence, rows.kv_head,
            SlabWalk(params, source, tiles, pair.visible, first + warp, num_slabs, stride));
  Queries<T> queries;
  queries.find(args, pair, rows);
  if (guessed) {
    wait_for_prerequisites();
    source.fault = params.fault;
    const Lengths lengths(args, Division::first_sequence(args));
    const SlabWalk::FirstPages pages = ring.read_pages();
    queries.ask(shared, args, pair, rows);
    ring.ask_first();
    const bool right = lengths == guess && ring.found(pages);
    queries.arrived();
    // One verdict for the block: warps read at different times, and may have guessed differently.
    if (!__syncthreads_and(right)) {
      ring.give_up();
      return false;
    }
    if (threadIdx.x == 0 && shared.ignored_fault != 0)
      set_fault(params.fault, static_cast<Fault>(shared.ignored_fault));
  } else {
    queries.ask(shared, args, pair, rows);
    ring.ask_first();
    queries.arrived();
    if (T::kTma) __syncthreads();
  }
  queries.take(shared);
  const KeyRange common = pair.mask.common(0, pair.sequence.q_len - 1);
  const Math math(threadIdx.x % 32);
  SoftmaxState state[Math::kRows];
  float o[Math::kRows][Math::kCols] = {};
  int stage = 0;
#pragma unroll 1
  for (int32_t i = first + warp; i < num_slabs; i += stride) {
    ring.wait(stage);
    const Slab<T>& slab = slabs[stage];
    const int32_t first_key = tiles.key(i);
    const uint32_t bad = source.paged() ? shared.bad[warp][stage] : 0;
    const bool at_edge = !tile_is_full(common, first_key, kSlabKeys);
    if (at_edge | (bad != 0)) [[unlikely]]
      ring.clean(stage, first_key);
    float s[Math::kRows][Math::kKeys] = {};
    math.multiply_qk(s, queries.a, slab.k);
    const float scale = make_logits<Math>(s, params.sm_scale, params.soft_cap);
    if (at_edge) [[unlikely]]
      mask_rows<kSlabKeys>(s, math, first_key, [&](int32_t r) {
        return pair.mask.row(args.token_of(rows.first_row + min_i32(r, rows.rows - 1)));
      });
    if (bad != 0) [[unlikely]]
      mask_keys(s, math, bad);
    update_softmax<Math>(s, scale, state, o);
    typename Math::Scratch scratch;
    math.multiply_pv(o, s, slab.v, scratch);
    __syncwarp();
    ring.ask(stage);
    if (++stage == stages) stage = 0;
  }
  reduce_sums<Math>(state);

  ring.drain();
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    const int r = math.row(i);
    if (r >= rows.rows) continue;
#pragma unroll
    for (int j = 0; j < Math::kCols; j += 2)
      *reinterpret_cast<float2*>(
          output_at(slabs[0], r, math.first_col() + Math::col_step(j))) =
          make_float2(o[i][j], o[i][j + 1]);
    if (math.leads_row()) shared.state[warp][r] = state[i];
  }
  return true;
}

// Merges the parts that the block's warps have left: into the result, or into this block's part. A
// thread stays in its row, whose factors it works out once.
template <class T>
__device__ __forceinline__ void merge_warps(SharedStorage<T>& shared, const DecodeArgs& args,
                                            const SharedPair& pair) {
  constexpr int kQuads = T::kHeadDim / kQuad;
  const int32_t r = static_cast<int32_t>(threadIdx.x) >> pair.log_row_threads;
  if (r >= pair.out.rows) return;
  SoftmaxState state;
  float max = minus_infinity();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) max = fmaxf(max, shared.state[warp][r].max);
  state.raise_max(max);
  float factors[kWarps];
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp)
    factors[warp] = state.add(shared.state[warp][r]);
  const int32_t step = 1 << pair.log_row_threads;
#pragma unroll 1
  for (int32_t quad = threadIdx.x & (step - 1); quad < kQuads; quad += step) {
    const int32_t col = quad * kQuad;
    if (col >= args.params.head_dim) break;
    float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp)
      add_scaled(o, *reinterpret_cast<const float4*>(output_at(*ring_of(shared, args, warp), r, col)),
                 factors[warp]);
    if (pair.parts == 1) {
      pair.out.template store<typename T::Element>(args, r, col, state, o);
    } else {
      pair.store_part(args, r * kQuads + quad, state, o);
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

// What each warp needs before it begins; barriers are its own, and no other warp's.
template <class T>
__device__ __forceinline__ void init_shared(SharedStorage<T>& shared) {
  if (threadIdx.x == 0) shared.ignored_fault = 0;
  if constexpr (T::kTma) {
    const int lane = threadIdx.x % 32;
    if (lane < kMaxStages) {
      barrier_init(shared.full[threadIdx.x / 32][lane], 1);
      shared.bad[threadIdx.x / 32][lane] = 0;
    }
    barrier_init_fence();
  }
  __syncwarp();  // lanes of the first warp report faults
}

// The ring takes slabs again: what the merge read and wrote comes before them.
template <class T>
__device__ __forceinline__ void free_ring() {
  if constexpr (T::kTma) fence_async_proxy();
  __syncthreads();
}

template <class T>
__device__ void decode(SharedStorage<T>& shared, const DecodeArgs& args) {
  allow_dependents();
  touch_parameters(args, shared.bad[0][0]);
  init_shared(shared);
  if (T::kTma && threadIdx.x == 0) {
    prefetch_map(args.maps.k);
    prefetch_map(args.maps.v);
  }
  uint32_t parities = 0;

  const auto team = static_cast<int32_t>(blockIdx.y);
  const int32_t batch = args.params.batch.batch_size;
  // Lengths are read, and all that follows from them is worked out, while the launch before is still
  // running. Large batches take longer than it pays.
  bool guessed = batch <= 32;
  if (!guessed) wait_for_prerequisites();
  Lengths guess(args, Division::first_sequence(args));
  int num_pending = 0;
  for (auto x = static_cast<int32_t>(blockIdx.x); x < args.params.num_kv_heads * args.row_tiles;) {
    Division division(args, team, guess, guessed ? &shared.ignored_fault : args.params.fault);
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
      held = attend<T>(shared, args, parities, pair, rows, one ? unit * kWarps : first,
                       one ? pair.slabs : last, one ? units * kWarps : kWarps,
                       guessed, guess);
      guessed = false;
      if (!held) break;
      __syncthreads();
      merge_warps<T>(shared, args, shared_pair);
      if (before + behind > 0) ++num_pending;
      unit += taken;
      left -= taken;
      if (left > 0) free_ring<T>();
    }
    if (held) {
      x += args.team_blocks;
    } else {
      guess = Lengths(args, Division::first_sequence(args));
    }
    guessed = false;
    free_ring<T>();
  }
  for (int i = 0; i < num_pending; ++i) shared.pairs[i].template finish<T>(args);
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kThreads, Traits<Element, kHeadDim, false>::kBlocksPerSm)
    attention_decode_kernel(const __grid_constant__ DecodeArgs args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kTma = true;
#else
  constexpr bool kTma = false;
#endif
  extern __shared__ __align__(128) unsigned char smem[];
  decode(*reinterpret_cast<SharedStorage<Traits<Element, kHeadDim, kTma>>*>(smem), args);
}

}  // namespace flash_gqa::cuda::decode
