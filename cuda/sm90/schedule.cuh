// Which tile a block works on: persistent blocks draw work indices from a counter, longest first.
#pragma once

#include <cstring>

#include "../lengths.cuh"
#include "../mask.h"

namespace flash_gqa::cuda::sm90 {

// Division by a number that only the host knows: a multiplication and a shift on the device, where
// the instructions of a division would take as long as a third of a tile's products.
struct Divisor {
  int32_t value;
  uint32_t factor;
  uint32_t shift;

  Divisor() = default;
  explicit Divisor(int32_t divisor) : value(divisor), factor(0), shift(0) {
    if (divisor == 1) return;
    uint32_t bits = 0;
    while ((int64_t{1} << bits) < divisor) ++bits;
    factor = static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + divisor - 1) / divisor);
    shift = bits - 1;
  }
  // n / value for n >= 0.
  __device__ __forceinline__ int32_t divide(int32_t n) const {
    return value == 1 ? n : static_cast<int32_t>(__umulhi(n, factor) >> shift);
  }
};

// How a tile of keys is copied: in boxes of keys of one page, each by a lane of a warp.
struct BoxSplit {
  int32_t box_keys;
  int32_t boxes;          // of a tile
  int32_t boxes_inverse;  // 65536 / boxes + 1
  int32_t tiles;          // whose boxes one warp has at a time
};

// Filled on the host. Work indices count tiles section by section: in a section, the last tiles of
// all its heads come first, since under a causal mask they are the longest, and what is left at the
// end is short. Sections are of heads of the whole batch, or, where lengths of queries vary, of one
// sequence: its tiles are then as many as it needs.
struct Schedule {
  int32_t* counters;        // zero between launches: draws, blocks that are done, flags of parts
  int32_t min_rows;         // sequences of at most this many rows are another launch's
  int32_t tokens_per_tile;  // query tokens of one tile: kTileQ / group_size
  int32_t tiles_per_head;   // ceil(max_q_len / tokens_per_tile)
  bool ragged;              // sequences have tiles of their own number
  bool reads_lengths;       // they lie on the device, where launches in front might write them
  bool foresees;            // foresight.cuh
  Divisor section_tiles;    // not ragged
  Divisor section_heads;    // (sequence, KV head) pairs whose K and V fit in the L2 together
  Divisor last_section_heads;
  Divisor num_kv_heads;
  int32_t last_section;
  int32_t total_tiles;  // ragged: at most
  BoxSplit split;
  int32_t group_size;
  int32_t group_inverse;  // 65536 / group_size + 1
  float4* parts;          // one place for each share; or null: nothing is divided

  // row / group_size, exact while row * group_size < 65536: a tile has at most 192 rows.
  __device__ __forceinline__ int32_t token_of(int32_t row) const {
    return (row * group_inverse) >> 16;
  }
};

// One tile of work: `tokens` query tokens of one sequence, for all heads of one group.
struct WorkTile {
  Sequence sequence;
  int32_t prefix_len;
  KeyRange keys;  // that at least one row sees
  int32_t kv_head;
  int32_t first_token;
  int32_t tokens;     // <= 0: this sequence is shorter; nothing to do
  int32_t key_first;  // of its key tiles, [key_first, key_end) are visited
  int32_t key_end;
  int32_t share;       // whose part of the tile this is, or kWhole
  int32_t take_first;  // the parts of shares [take_first, share) complete the tile; or kLeave

  __device__ __forceinline__ Mask mask(const AttentionParams& params) const {
    return {sequence.q_len, sequence.kv_len,    params.causal,
            params.window,  params.sink_tokens, prefix_len};
  }
};

constexpr int32_t kNoMoreWork = -1;
constexpr int32_t kWhole = -1;
constexpr int32_t kLeave = -1;        // the part is left for another block
constexpr int32_t kDrawCounters = 2;  // and then flags of parts

// Of the last key tiles of some work, how many none of tokens [first, last] sees. Who has a share of a
// tile hands a part over in any case, and computes at least one.
template <int kTileKv>
__device__ __forceinline__ int32_t unseen_tiles(const WorkTile& work, const AttentionParams& params,
                                                int32_t first, int32_t last) {
  KeyRange keys = work.keys;  // where tiles begin
  const int32_t end = work.first_token + work.tokens;
  keys.hi = first < end ? work.mask(params).rows(first, min_i32(last, end - 1)).hi : 0;
  const int32_t seen = first < end ? TileRange(keys, kTileKv).count() : 0;
  const int32_t least = min_i32(work.key_end, work.key_first + (work.share == kWhole ? 0 : 1));
  return work.key_end - min_i32(max_i32(seen, least), work.key_end);
}

// What one warp decodes, and all others read.
template <int kConsumers>
struct SharedWork {
  int32_t key_tiles;  // that are visited, or kNoMoreWork
  WorkTile tile;
  KeyRange common[kConsumers];  // that all rows of a warpgroup see
  int32_t unseen[kConsumers];   // of the last key tiles, how many none of its rows sees
};

// Words that are the same for a whole warp, from shared memory. Each lane loads one, and the rest
// comes by shuffles: the compiler then knows that they are the same, and keeps them, and what
// depends on them, in uniform registers.
template <class Words>
__device__ __forceinline__ Words load_uniform(const Words& from) {
  constexpr int kCount = sizeof(Words) / 4;
  static_assert(sizeof(Words) % 4 == 0 && kCount <= 32);
  const int lane = threadIdx.x % 32;
  const int32_t mine = reinterpret_cast<const int32_t*>(&from)[min_i32(lane, kCount - 1)];
  int32_t words[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) words[i] = __shfl_sync(0xffffffff, mine, i);
  Words to;
  memcpy(&to, words, sizeof(Words));
  return to;
}

// A sequence of a ragged batch that has a tile of this index.
struct Found {
  int32_t b;  // or -1: there are fewer tiles
  int32_t tiles_per_head;
  int32_t index;  // among the sequence's tiles; or how far beyond the last
};

// For a whole warp: each lane looks at a sequence.
__device__ __forceinline__ Found find_sequence(const AttentionParams& params,
                                               const Schedule& schedule, int32_t index) {
  const int32_t lane = threadIdx.x % 32;
  BatchView queries = params.batch;
  queries.cu_seqlens_k = nullptr;
  queries.kv_lens = nullptr;
#pragma unroll 1
  for (int32_t first = 0; first < queries.batch_size; first += 32) {
    const int32_t b = min_i32(first + lane, queries.batch_size - 1);
    const int32_t q_len = read_sequence(queries, KvView{}, b, params.fault).q_len;
    const bool mine = static_cast<int64_t>(q_len) * schedule.group_size > schedule.min_rows;
    const int32_t per_head = mine && first + lane < queries.batch_size
                                 ? (q_len + schedule.tokens_per_tile - 1) / schedule.tokens_per_tile
                                 : 0;
    const int32_t tiles = per_head * params.num_kv_heads;
    int32_t end = tiles;
#pragma unroll 1
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int32_t below = __shfl_up_sync(0xffffffff, end, lanes);
      if (lane >= lanes) end += below;
    }
    const uint32_t found = __ballot_sync(0xffffffff, index < end);
    const int source = found != 0 ? __ffs(found) - 1 : 31;
    index -= __shfl_sync(0xffffffff, end - (found != 0 ? tiles : 0), source);
    if (found != 0) return {first + source, __shfl_sync(0xffffffff, per_head, source), index};
  }
  return {-1, 0, index};
}

// How many tiles there are, for a whole warp.
__device__ __forceinline__ int32_t count_tiles(const AttentionParams& params,
                                               const Schedule& schedule) {
  if (!schedule.ragged) return schedule.total_tiles;
  return schedule.total_tiles - find_sequence(params, schedule, schedule.total_tiles).index;
}

// For a whole warp: which tile this index is of; only where the batch is ragged, lengths are read. Returns
// its sequence, or -1: there is no such tile.
__device__ __forceinline__ int32_t find_tile(const AttentionParams& params,
                                             const Schedule& schedule, int32_t index, WorkTile& w) {
  Found found{0, schedule.tiles_per_head, index};
  int32_t section;
  if (schedule.ragged) {
    found = find_sequence(params, schedule, index);
    if (found.b < 0) return -1;
    section = found.index / (schedule.section_heads.value * found.tiles_per_head);
  } else {
    if (index >= schedule.total_tiles) return -1;
    section = schedule.section_tiles.divide(index);
  }
  const int32_t first_head = section * schedule.section_heads.value;
  const int32_t in_section = found.index - first_head * found.tiles_per_head;
  const Divisor& heads =
      section < schedule.last_section ? schedule.section_heads : schedule.last_section_heads;
  const int32_t back = heads.divide(in_section);
  const int32_t head = first_head + in_section - back * heads.value;
  const int32_t b = schedule.ragged ? found.b : schedule.num_kv_heads.divide(head);
  w.kv_head = schedule.ragged ? head : head - b * schedule.num_kv_heads.value;
  w.first_token = (found.tiles_per_head - 1 - back) * schedule.tokens_per_tile;
  return b;
}

// What follows from the lengths of its sequence.
template <int kTileKv>
__device__ __forceinline__ void measure_tile(const AttentionParams& params,
                                             const Schedule& schedule, int32_t b,
                                             const Lengths& lengths, int32_t* fault, WorkTile& w) {
  w.sequence = checked_sequence(params.batch, params.kv, b, lengths.words, fault);
  const bool mine =
      static_cast<int64_t>(w.sequence.q_len) * schedule.group_size > schedule.min_rows;
  w.tokens = mine ? min_i32(schedule.tokens_per_tile, w.sequence.q_len - w.first_token) : 0;
  w.prefix_len = lengths.prefix_len;
  w.keys = w.mask(params).rows(w.first_token, w.first_token + w.tokens - 1);
  w.key_first = 0;
  w.key_end = w.tokens > 0 ? TileRange(w.keys, kTileKv).count() : 0;
  w.share = kWhole;
}

// What one warp says of its work to all others.
template <int kTileKv, bool kSkips, int kConsumers>
__device__ __forceinline__ void write_work(SharedWork<kConsumers>& to,
                                           const AttentionParams& params, const Schedule& schedule,
                                           const WorkTile& work, bool done) {
  const int lane = threadIdx.x % 32;
  if (lane < kConsumers) {
    const int32_t first = work.first_token + schedule.token_of(lane * 64);
    const int32_t last = work.first_token + schedule.token_of(lane * 64 + 63);
    to.common[lane] = work.mask(params).common(first, last);
    // At the end, `work` may be a tile that was only looked at.
    if constexpr (kSkips)
      to.unseen[lane] = done ? 0 : unseen_tiles<kTileKv>(work, params, first, last);
  }
  if (lane == 0) {
    to.tile = work;
    to.key_tiles = done ? kNoMoreWork : work.key_end - work.key_first;
  }
  __syncwarp();
}

}  // namespace flash_gqa::cuda::sm90
