// Attention of few rows against many keys: K and V are read from memory once, through rings that
// share nothing, and the parts are merged in the same launch. docs/decode.md has the design, the
// floors and the log.
#pragma once

#include "../dependent_launch.cuh"
#include "../tile/softmax.cuh"
#include "linger.cuh"
#include "queries.cuh"
#include "tma_ring.cuh"

namespace flash_gqa::cuda::decode {

// Where a warp leaves its part of 16 rows: in the place of one slab, which is as large.
// 32-byte units are permuted by the row, so that neither side meets bank conflicts.
template <class T>
__device__ __forceinline__ float* output_at(const Slab<T>& slab, int r, int col) {
  static_assert(sizeof(Slab<T>) >= kWarpRows * T::kHeadDim * sizeof(float));
  constexpr int kPermuted = T::kHeadDim % 64 == 0 ? 8 : 4;
  auto* data = reinterpret_cast<float*>(const_cast<Slab<T>*>(&slab));
  return data + r * T::kHeadDim + (col / 8 ^ r % kPermuted) * 8 + col % 8;
}

// When the next launch may place its blocks: where memory is the limit, once the last keys have been
// asked for, so that its first ones follow on them; where many rows are merged, at once, because what
// it works out would take turns with that.
template <class T>
__device__ __forceinline__ bool triggers_late(const DecodeArgs& args) {
  return T::kRowGroups == 1 && args.row_tiles == 1;
}

template <class T>
__device__ __forceinline__ void make_room(SharedStorage<T>& shared, const DecodeArgs& args) {
  allow_dependents();
  count_as_triggered(shared, args);
}

template <class T>
__device__ __forceinline__ Slab<T>* ring_of(SharedStorage<T>& shared, const DecodeArgs& args,
                                            int key_warp) {
  return shared.ring + key_warp * (T::kTma ? args.stages : T::kStages);
}

// The sequence whose lengths a thread guesses, and confirms.
__device__ __forceinline__ int32_t seen_by_thread(const DecodeArgs& args) {
  return min_i32(ptx::fresh_thread_index(), args.params.batch.batch_size - 1);
}

// A block's share of one pair, up to the point where its warps have left their parts in shared
// memory: slabs [first, last).
//
// While `guessed`, the launches in front may still be running, and all that was read so far is
// a guess: it is good enough to know which keys to ask for behind them, since every guess lies within
// its buffer. While those are on their way, everything is read again. False: the guess was wrong.
//
// prepare() is done while the keys are on their way.
template <class T, class Prepare>
__device__ __forceinline__ bool attend(SharedStorage<T>& shared, const DecodeArgs& args,
                                       uint32_t& parities, const Pair& pair, const RowTile& rows,
                                       int32_t first, int32_t last, int32_t stride, bool guessed,
                                       const Prepare& prepare) {
  using Math = typename T::Math;
  using Ring = std::conditional_t<T::kTma, TmaRing<T>, AsyncRing<T>>;
  const int key_warp = threadIdx.x / 32 % kKeyWarps;
  const AttentionParams& params = args.params;
  const TileRange tiles(pair.visible, kSlabKeys);
  // None for a pair that sees no key, and for a tile of rows that a shorter sequence has not.
  const int32_t num_slabs = rows.rows > 0 ? min_i32(last, tiles.count()) : 0;
  const int stages = T::kTma ? args.stages : T::kStages;
  Slab<T>* const slabs = ring_of(shared, args, key_warp);
  Ring ring(
      shared, args, parities, pair, rows.kv_head,
      SlabWalk(args, shared.progress.division.pair, tiles, first + key_warp, num_slabs, stride));
  Queries<T> queries;
  queries.find(args, pair, rows);
  SlabWalk::FirstPages pages =
      ring.read_pages(pair.sequence, guessed ? &shared.ignored_page_fault : params.fault);
  ring.start_with(pages);
  if (guessed) {
    if (triggers_late<T>(args)) {
      if (num_slabs <= ring.begin + stages * stride) allow_dependents();
      ring.prefetch();
    }
    wait_for_prerequisites();
    // Before the keys: behind them, the answers would come last.
    const int32_t looks_at = seen_by_thread(args);
    const Lengths lengths(params, looks_at);
    const SlabWalk::FirstPages pages_again =
        ring.read_pages(pair.sequence, &shared.ignored_page_fault);
    queries.ask(shared, args, pair, rows);
    ring.ask_first();
    const bool right = pages_again == pages && lengths == shared.seen[looks_at];
    queries.arrived();
    // One verdict for the block.
    if (!__syncthreads_and(right)) {
      ring.give_up();
      return false;
    }
    if (pages.now < 0 || pages.next < 0) set_fault(params.fault, kFaultPageId);
    if (threadIdx.x == 0 && shared.ignored_fault != 0)
      set_fault(params.fault, static_cast<Fault>(shared.ignored_fault));
  } else {
    queries.ask(shared, args, pair, rows);
    ring.ask_first();
    queries.arrived();
    __syncthreads();
  }
  prepare();
  if (triggers_late<T>(args) && ring.next >= ring.end) make_room(shared, args);
  queries.take(shared);
  const KeyRange common = pair.mask.common(0, pair.sequence.q_len - 1);
  const Math math(threadIdx.x % 32 + threadIdx.x / (32 * kKeyWarps) * 32);
  SoftmaxState state[Math::kRows];
  float o[Math::kRows][Math::kCols] = {};
  int stage = 0;
#pragma unroll 1
  for (int32_t i = first + key_warp; i < num_slabs; i += stride) {
    ring.wait(stage);
    const Slab<T>& slab = slabs[stage];
    const int32_t first_key = tiles.key(i);
    const uint32_t bad = ring.paged() ? shared.bad[key_warp][stage] : 0;
    const bool at_edge = !tile_is_full(common, first_key, kSlabKeys);
    if (at_edge | (bad != 0)) [[unlikely]]
      ring.clean(stage, first_key);
    float s[Math::kRows][Math::kKeys] = {};
    queries.multiply(math, s, shared, slab.k);
    const float scale = make_logits<Math>(s, params.sm_scale, params.soft_cap);
    if (at_edge) [[unlikely]]
      mask_rows<kSlabKeys>(s, math, first_key, [&](int32_t r) {
        const Progress& p = shared.progress;
        const int32_t row = p.rows.first_row + min_i32(r, p.rows.rows - 1);
        return p.division.pair.mask.row(args.token_of(row));
      });
    if (bad != 0) [[unlikely]]
      mask_keys(s, math, bad);
    update_softmax<Math>(s, scale, state, o);
    typename Math::Scratch scratch;
    math.multiply_pv(o, s, slab.v, scratch);
    ring.release();
    ring.ask(stage);
    if (triggers_late<T>(args) && ring.has_just_ended()) make_room(shared, args);
    if (++stage == stages) stage = 0;
  }
  reduce_sums<Math>(state);

  ring.drain();
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    const int r = math.row(i);
    if (r >= shared.progress.rows.rows) continue;
#pragma unroll
    for (int j = 0; j < Math::kCols; j += 2)
      *reinterpret_cast<float2*>(
          output_at(slabs[r / kWarpRows], r % kWarpRows, math.first_col() + Math::col_step(j))) =
          make_float2(o[i][j], o[i][j + 1]);
    if (math.leads_row()) shared.state[key_warp][r] = state[i];
  }
  return true;
}

// Merges the parts that the block's warps have left: into the result, or into this block's part. A
// thread stays in its row, whose factors it works out once.
template <class T>
__device__ __forceinline__ void merge_warps(SharedStorage<T>& shared, const DecodeArgs& args,
                                            const SharedPair& pair) {
  constexpr int kQuads = T::kHeadDim / kQuad;
  const int thread = ptx::fresh_thread_index();
  const int32_t r = thread >> pair.log_row_threads;
  if (r >= pair.out.rows) return;
  SoftmaxState state;
  float max = minus_infinity();
#pragma unroll
  for (int warp = 0; warp < kKeyWarps; ++warp) max = fmaxf(max, shared.state[warp][r].max);
  state.raise_max(max);
  float factors[kKeyWarps];
#pragma unroll
  for (int warp = 0; warp < kKeyWarps; ++warp) factors[warp] = state.add(shared.state[warp][r]);
  const int32_t step = 1 << pair.log_row_threads;
#pragma unroll 1
  for (int32_t quad = thread & (step - 1); quad < kQuads; quad += step) {
    const int32_t col = quad * kQuad;
    if (col >= args.params.head_dim) break;
    float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < kKeyWarps; ++warp)
      add_scaled(o,
                 *reinterpret_cast<const float4*>(
                     output_at(ring_of(shared, args, warp)[r / kWarpRows], r % kWarpRows, col)),
                 factors[warp]);
    if (pair.parts == 1) {
      pair.out.template place<typename T::Element>(args, r, col)
          .template store<typename T::Element>(state, o);
    } else {
      pair.store_part(args, r * kQuads + quad, state, o);
    }
  }
}

// Parameters come from memory too: each launch has its own copy, which nothing has read yet. They are
// fetched while the launch before is still running; `sink` makes the compiler believe in it.
__device__ __forceinline__ void touch_parameters(const DecodeArgs& args, uint32_t& sink) {
  constexpr int kWords = offsetof(DecodeArgs, maps) / 4;  // these are fetched by the copy engine
  const auto* words = reinterpret_cast<const uint32_t*>(&args);
  uint32_t all = words[kWords - 1];
#pragma unroll
  for (int i = 0; i < kWords; i += 16) all ^= words[i];
  if (threadIdx.x == 0) *static_cast<volatile uint32_t*>(&sink) = all;
}

// What a warp that asks for slabs needs first; the others wait for them behind the block's first
// barrier.
template <class T>
__device__ __forceinline__ void init_shared(SharedStorage<T>& shared, const DecodeArgs& args) {
  if (threadIdx.x == 0) {
    shared.ignored_fault = 0;
    shared.lingering = kNoLingering;
  }
  if constexpr (T::kTma) {
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32 * kKeyWarps && lane < kMaxStages)
      barrier_init(shared.full[threadIdx.x / 32][lane], TmaRing<T>::arrivals(args));
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
  if (!triggers_late<T>(args)) allow_dependents();
  touch_parameters(args, shared.bad[0][0]);
  init_shared(shared, args);
  if (T::kTma && threadIdx.x == 0 && !args.small_pages()) {
    prefetch_map(args.maps.k);
    prefetch_map(args.maps.v);
  }
  uint32_t parities = 0;

  const auto team = static_cast<int32_t>(blockIdx.y);
  const int32_t batch = args.params.batch.batch_size;
  // Lengths are read, and all that follows from them is worked out, while the launch before is still
  // running: where there are dependent launches, and page ids can be guessed too.
  static_assert(kMostGuessed <= T::kThreads);
  bool guessed = T::kTma && batch <= kMostGuessed && !args.small_pages();
  if (guessed) {
    if (threadIdx.x < batch) shared.seen[threadIdx.x] = Lengths(args.params, threadIdx.x);
    // The first warp divides by what other warps have read, where there are more sequences than it has lanes.
    if (batch > 32) __syncthreads();
    __syncwarp();
  } else {
    wait_for_prerequisites();
  }
  int32_t num_pending = 0;
  const int32_t columns = args.params.num_kv_heads * args.row_tiles;
  for (auto x = static_cast<int32_t>(blockIdx.x); x < columns;) {
    if (threadIdx.x < 32) {
      const Division found(args, team, guessed ? shared.seen : nullptr,
                           guessed ? &shared.ignored_fault : args.params.fault);
      if (threadIdx.x == 0) {
        shared.division = found;
        plan_to_linger(shared, args, found);
      }
    }
    __syncthreads();
    Division division = shared.division;
    int32_t left = division.units_per_team;
    bool held = true;
    if (guessed && division.b >= batch) {  // nothing to do that would show whether that is right
      allow_dependents();
      wait_for_prerequisites();
      held = false;
    }
    while (held && left > 0 && division.b < batch) {
      const Pair& pair = division.pair;
      const int32_t units = division.units(pair.rounds());
      if (division.unit >= units) {
        division.unit -= units;
        division.b_first += units;
        if (++division.b < batch) division.pair = Pair(args, division.b, args.params.fault);
        continue;
      }
      const int32_t first_unit = division.unit;
      const int32_t taken = min_i32(left, units - first_unit);
      const int32_t kv_head = args.row_tiles == 1 ? x : x / args.row_tiles;
      const int32_t first_row = (x - kv_head * args.row_tiles) * T::kRows;
      const RowTile rows{kv_head, first_row, min_i32(T::kRows, pair.rows - first_row)};
      // Where the sequence begins and ends, counted from this team's first unit.
      const int32_t per_team = division.units_per_team;
      const auto begins =
          static_cast<int32_t>(division.b_first - static_cast<int64_t>(team) * per_team);
      const bool one = per_team == 1;
      const int32_t before = begins >= 0 ? 0 : one ? -begins : (-begins + per_team - 1) / per_team;
      const int32_t behind = one ? begins + units - 1 : (begins + units - 1) / per_team;
      division.unit += taken;
      if (threadIdx.x == T::kThreads - 32)
        shared.progress = {division, rows, left - taken, x, num_pending, before + behind > 0};
      if (args.small_pages()) __syncthreads();  // to look rows up, the pair is needed at once
      // A whole share of one sequence is every units-th round of it, so that all blocks move through
      // memory together.
      const int32_t first = first_unit * division.rounds_per_unit * kKeyWarps;
      const int32_t last = (first_unit + taken) * division.rounds_per_unit * kKeyWarps;
      held = attend<T>(
          shared, args, parities, pair, rows, one ? first_unit * kKeyWarps : first,
          one ? pair.slabs : last, one ? units * kKeyWarps : kKeyWarps, guessed, [&] {
            if (threadIdx.x != T::kThreads - 32) return;
            shared.pairs[num_pending] = SharedPair(
                args, {pair.sequence.q_start, kv_head, first_row, max_i32(0, rows.rows)}, x,
                T::kHeadDim / kOctet, T::kThreads, team - before, before + behind + 1, before);
          });
      guessed = false;
      const Progress& progress = shared.progress;
      x = progress.x;
      num_pending = progress.num_pending;
      if (!held) break;
      __syncthreads();
      merge_warps<T>(shared, args, shared.pairs[num_pending]);
      division = progress.division;
      left = progress.left;
      num_pending += progress.crosses;
      if (left > 0) free_ring<T>();
    }
    guessed = false;
    if (held) x += args.team_blocks;
    if (x < columns) free_ring<T>();
  }
  Lingering lingering(shared, args);
  for (int i = 0; i < num_pending; ++i) shared.pairs[i].template finish<T>(args);
  lingering.linger(args);
}

template <class Element, int kHeadDim, int kGroups>
__global__ void __launch_bounds__(Traits<Element, kHeadDim, kGroups, true>::kThreads,
                                  Traits<Element, kHeadDim, kGroups, true>::kBlocksPerSm)
    attention_decode_kernel(const __grid_constant__ DecodeArgs args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kTma = true;
#else
  constexpr bool kTma = false;
#endif
  extern __shared__ __align__(1024) unsigned char smem[];
  if constexpr (kGroups == 1 || kTma)  // else it is never launched
    decode(*reinterpret_cast<SharedStorage<Traits<Element, kHeadDim, kGroups, kTma>>*>(smem), args);
}

}  // namespace flash_gqa::cuda::decode
