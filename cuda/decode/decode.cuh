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

// Where a key warp leaves its part of the i-th group of rows: in a place of its own, or, when all keys have been
// read, in its ring.
template <class T>
__device__ __forceinline__ WarpPart<T>& part_of(SharedStorage<T>& shared, const DecodeArgs& args,
                                                int key_warp, int i) {
  if constexpr (T::kFollows) {
    static_assert(T::kRowGroups == 1);
    return shared.parts[key_warp];
  } else {
    static_assert(sizeof(Slab<T>) >= sizeof(WarpPart<T>));
    const int stages = T::kTma ? args.stages : T::kStages;
    return reinterpret_cast<WarpPart<T>&>(shared.ring[key_warp * stages + i]);
  }
}

// The sequence whose lengths a thread guesses, and confirms.
__device__ __forceinline__ int32_t seen_by_thread(const DecodeArgs& args) {
  return min_i32(ptx::fresh_thread_index(), args.params.batch.batch_size - 1);
}

template <class T>
using Ring = std::conditional_t<T::kTma, TmaRing<T>, AsyncRing<T>>;

// All lengths, or null where they have to be read.
template <class T>
__device__ __forceinline__ const Lengths* known_lengths(const SharedStorage<T>& shared) {
  return shared.knows_lengths ? shared.seen : nullptr;
}

// What the block does next is looked up while the queries of the piece at hand are on their way; by one thread.
template <class T>
__device__ __forceinline__ void look_ahead(SharedStorage<T>& shared, const DecodeArgs& args,
                                           const Progress& progress, bool guessed) {
  if (threadIdx.x != T::kThreads - 32) return;
  Progress& now = shared.progress;
  now = progress;
  Piece& next = shared.pieces[now.slot ^ 1];
  int32_t* const fault = guessed ? &shared.ignored_fault : args.params.fault;
  const bool found = shared.division.next(args, known_lengths(shared), fault, next);
  shared.has_piece[now.slot ^ 1] = found;
  now.follows =
      T::kFollows && found && min_i32(next.last, next.pair.slabs) - next.first >= kShortPiece;
}

// One piece, up to the point where the block's warps have left their parts in shared memory.
//
// While `guessed`, the launches in front may still be running, and all that was read so far is
// a guess: it is good enough to know which keys to ask for behind them, since every guess lies within
// its buffer. While those are on their way, everything is read again. False: the guess was wrong.
//
// prepare() is done while the keys are on their way.
template <class T, class Prepare>
__device__ __forceinline__ bool attend(SharedStorage<T>& shared, const DecodeArgs& args,
                                       Ring<T>& ring, const Progress& progress, bool guessed,
                                       const Prepare& prepare) {
  using Math = typename T::Math;
  const Piece& piece = shared.pieces[progress.slot];
  const RowTile& rows = progress.rows;
  const AttentionParams& params = args.params;
  Queries<T> queries;
  const int buffer = T::kFollows ? progress.slot : 0;
  const bool asked = T::kFollows && progress.asked;
  if (!asked) queries.find(args, piece.pair, rows);
  const SlabWalk::FirstPages pages = ring.begin(
      piece, rows.kv_head, rows.first_row, guessed ? &shared.ignored_page_fault : params.fault);
  if (guessed) {
    if (triggers_late<T>(args)) {
      if (ring.asks_at_once()) allow_dependents();
      ring.prefetch();
    }
    wait_for_prerequisites();
  }
  // Before the keys: behind them, the answers would come last. Lengths are read where nothing was guessed, too: a
  // branch around them would spill tiles of 32 rows.
  const int32_t looks_at = seen_by_thread(args);
  const Lengths lengths(params, looks_at);
  const SlabWalk::FirstPages again = guessed ? ring.read_pages(&shared.ignored_page_fault) : pages;
  if (!asked) queries.ask(shared, args, piece.pair, rows, buffer);
  ring.fill();
  look_ahead(shared, args, progress, guessed);
  queries.arrived();
  const bool right = !guessed || (again == pages && lengths == shared.seen[looks_at]);
  // One verdict for the block.
  if (!__syncthreads_and(right)) {
    ring.give_up();
    return false;
  }
  if (guessed) {
    if (pages.now < 0 || pages.next < 0) set_fault(params.fault, kFaultPageId);
    if (threadIdx.x == 0 && shared.ignored_fault != 0)
      set_fault(params.fault, static_cast<Fault>(shared.ignored_fault));
  }
  queries.take(shared, buffer);
  const SlabWalk walk = ring.current();
  if constexpr (T::kFollows) {
    if (shared.progress.follows) {
      const Piece& follower = shared.pieces[progress.slot ^ 1];
      ring.will_follow(follower);
      Queries<T> behind;
      const RowTile rows_behind = rows.of(follower.pair, T::kRows);
      behind.find(args, follower.pair, rows_behind);
      behind.ask(shared, args, follower.pair, rows_behind, buffer ^ 1);
    }
  }
  prepare();
  const int key_warp = threadIdx.x / 32 % kKeyWarps;
  const TileRun full =
      full_band(piece.pair.mask.common(0, piece.pair.sequence.q_len - 1), walk.tiles);
  const auto was_last = [&] {
    if (triggers_late<T>(args)) make_room(shared, args);
  };
  const Math math(threadIdx.x % 32 + threadIdx.x / (32 * kKeyWarps) * 32);
  SoftmaxState state[Math::kRows];
  float o[Math::kRows][Math::kCols] = {};
#pragma unroll 1
  for (int32_t i = walk.begin; i < walk.end; i += walk.stride) {
    ring.wait();
    const Slab<T>& slab = ring.slab();
    const uint32_t bad = ring.bad_keys();
    const bool at_edge = !full.contains(i);
    if (at_edge) [[unlikely]]
      ring.clean(piece.pair.visible, walk.tiles.key(i));
    float s[Math::kRows][Math::kKeys] = {};
    queries.multiply(math, s, shared, slab.k);
    const float scale = make_logits<Math>(s, params.sm_scale, params.soft_cap);
    if (at_edge | (bad != 0)) [[unlikely]] {
      mask_rows<kSlabKeys>(s, math, walk.tiles.key(i), [&](int32_t r) {
        const int32_t row =
            shared.progress.rows.first_row + min_i32(r, shared.progress.rows.rows - 1);
        return shared.pieces[shared.progress.slot].pair.mask.row(args.token_of(row));
      });
      mask_keys(s, math, bad);
    }
    update_softmax<Math>(s, scale, state, o);
    typename Math::Scratch scratch;
    math.multiply_pv(o, s, slab.v, scratch);
    ring.release();
    ring.ask(was_last);
    ring.advance();
  }
  reduce_sums<Math>(state);

  ring.drain();
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    const int r = math.row(i);
    if (r >= shared.progress.rows.rows) continue;
    WarpPart<T>& part = part_of(shared, args, key_warp, r / T::kWarpRows);
#pragma unroll
    for (int j = 0; j < Math::kCols; j += Math::kColsTogether) {
      float* const to = part.at(r % T::kWarpRows, math.first_col() + Math::col_step(j));
      if constexpr (Math::kColsTogether == 2) {
        *reinterpret_cast<float2*>(to) = make_float2(o[i][j], o[i][j + 1]);
      } else {
        *to = o[i][j];
      }
    }
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
                     part_of(shared, args, warp, r / T::kWarpRows).at(r % T::kWarpRows, col)),
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

// Whether a launch begins with a guess.
template <class T>
__device__ __forceinline__ bool guesses(const DecodeArgs& args) {
  static_assert(kMostGuessed <= T::kThreads);
  return T::kTma && !T::kSmallPages && args.params.batch.batch_size <= kMostGuessed;
}

// What a warp that asks for slabs needs first; the others wait for them behind the block's first
// barrier.
template <class T>
__device__ __forceinline__ void init_shared(SharedStorage<T>& shared, const DecodeArgs& args) {
  if (threadIdx.x == 0) {
    shared.ignored_fault = 0;
    shared.lingering = kNoLingering;
    shared.knows_lengths = guesses<T>(args);
  }
  if constexpr (T::kTma) {
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32 * kKeyWarps && lane < kMaxStages)
      barrier_init(shared.full[threadIdx.x / 32][lane], TmaRing<T>::kArrivals);
    barrier_init_fence();
  }
  __syncwarp();  // lanes of the first warp report faults
}

// Behind it the block may overwrite what it had in shared memory of the piece that it has merged, or has given up:
// its warps' parts, which may lie in the ring, its queries, and all that it knew of it.
template <class T>
__device__ __forceinline__ void end_piece() {
  if constexpr (T::kTma && !T::kFollows) fence_async_proxy();
  __syncthreads();
}

template <class T>
__device__ void decode(SharedStorage<T>& shared, const DecodeArgs& args) {
  if (!triggers_late<T>(args)) allow_dependents();
  touch_parameters(args, shared.bad[0][0]);
  init_shared(shared, args);
  if (T::kTma && !T::kSmallPages && threadIdx.x == 0) {
    prefetch_map(args.maps.k);
    prefetch_map(args.maps.v);
  }
  Ring<T> ring(shared, args);

  const auto first_team = static_cast<int32_t>(blockIdx.y) * args.teams_per_block;
  const int32_t batch = args.params.batch.batch_size;
  // Lengths are read, and all that follows from them is worked out, while the launch before is still
  // running: where there are dependent launches, and page ids can be guessed too.
  bool guessed = guesses<T>(args);
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
      const Lengths* const seen = known_lengths(shared);
      int32_t* const fault = guessed ? &shared.ignored_fault : args.params.fault;
      Division division(args, first_team, seen, fault);
      if (threadIdx.x == 0) {
        plan_to_linger(shared, args, division);
        shared.has_piece[0] = division.next(args, seen, fault, shared.pieces[0]);
        shared.division = division;
      }
    }
    __syncthreads();
    bool held = true;
    if (guessed && !shared.has_piece[0]) {  // nothing to do that would show whether that is right
      allow_dependents();
      wait_for_prerequisites();
      held = false;
    }
    int slot = 0;
    bool asked = false;
    while (held && shared.has_piece[slot]) {
      const Piece& piece = shared.pieces[slot];
      const int32_t kv_head = args.row_tiles == 1 ? x : x / args.row_tiles;
      const RowTile rows =
          RowTile{kv_head, (x - kv_head * args.row_tiles) * T::kRows, 0}.of(piece.pair, T::kRows);
      held =
          attend<T>(shared, args, ring, {rows, x, slot, num_pending, asked, false}, guessed, [&] {
            if (threadIdx.x != T::kThreads - 32) return;
            shared.pairs[num_pending] = SharedPair(
                args, {piece.pair.sequence.q_start, kv_head, rows.first_row, max_i32(0, rows.rows)},
                x, T::kHeadDim / kOctet, T::kThreads, piece.team - piece.before,
                piece.before + piece.behind + 1, piece.before);
          });
      guessed = false;
      const Progress& progress = shared.progress;
      x = progress.x;
      slot = progress.slot;
      asked = T::kFollows && progress.follows;
      num_pending = progress.num_pending;
      if (!held) break;
      __syncthreads();
      merge_warps<T>(shared, args, shared.pairs[num_pending]);
      const Piece& done = shared.pieces[slot];
      num_pending += done.before + done.behind > 0;
      slot ^= 1;
      if (shared.has_piece[slot]) end_piece<T>();
    }
    if (!held && threadIdx.x == 0) shared.knows_lengths = false;
    guessed = false;
    if (held) x += args.team_blocks;
    if (x < columns) end_piece<T>();
  }
  Lingering lingering(shared, args);
  for (int i = 0; i < num_pending; ++i) shared.pairs[i].template finish<T>(args);
  lingering.linger(args);
}

template <class Element, int kHeadDim, int kRows, bool kSmallPages>
__global__ void __launch_bounds__(Traits<Element, kHeadDim, kRows, Filler::kBoxes>::kThreads,
                                  Traits<Element, kHeadDim, kRows, Filler::kBoxes>::kBlocksPerSm)
    attention_decode_kernel(const __grid_constant__ DecodeArgs args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr Filler kFiller = kSmallPages ? Filler::kSmallPages : Filler::kBoxes;
#else
  constexpr Filler kFiller = Filler::kOlderCards;
#endif
  extern __shared__ __align__(1024) unsigned char smem[];
  // For older cards the others are never launched.
  if constexpr (kFiller != Filler::kOlderCards || (kRows == 16 && !kSmallPages))
    decode(*reinterpret_cast<SharedStorage<Traits<Element, kHeadDim, kRows, kFiller>>*>(smem),
           args);
}

}  // namespace flash_gqa::cuda::decode
