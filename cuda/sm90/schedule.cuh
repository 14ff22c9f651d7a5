// Which tile a block works on: persistent blocks draw work indices from a counter, longest first.
#pragma once

#include <cstring>

#include "../kv_source.h"
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

// Filled on the host. `counters` are two words, zero between launches: each launch leaves them
// zero.
struct Schedule {
  int32_t* counters;
  int32_t min_rows;         // sequences of at most this many rows are another launch's
  int32_t tokens_per_tile;  // query tokens of one tile: kTileQ / group_size
  int32_t tiles_per_head;   // ceil(max_q_len / tokens_per_tile)
  Divisor section_tiles;
  Divisor section_heads;  // (sequence, KV head) pairs whose K and V fit in the L2 together
  Divisor last_section_heads;
  Divisor num_kv_heads;
  int32_t last_section;
  int32_t total_tiles;
  int32_t box_keys;  // key rows of one K or V box: a whole page, or a tile
  int32_t group_size;
  int32_t group_inverse;  // 65536 / group_size + 1

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
  int32_t tokens;  // <= 0: this sequence is shorter; nothing to do

  __device__ __forceinline__ Mask mask(const AttentionParams& params) const {
    return {sequence.q_len, sequence.kv_len,    params.causal,
            params.window,  params.sink_tokens, prefix_len};
  }
};

constexpr int32_t kNoMoreWork = -1;

// What one warp decodes, and all others read.
template <int kConsumers>
struct SharedWork {
  int32_t key_tiles;  // that the tile visits, or kNoMoreWork
  WorkTile tile;
  KeyRange common[kConsumers];  // that all rows of a warpgroup see
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

__device__ __forceinline__ WorkTile decode_work(const AttentionParams& params,
                                                const Schedule& schedule, int32_t work) {
  // Within a section, the last tiles of all heads come first: under a causal mask they are the
  // longest, and what is left at the end is short.
  const int32_t section = schedule.section_tiles.divide(work);
  const int32_t in_section = work - section * schedule.section_tiles.value;
  const Divisor& heads =
      section < schedule.last_section ? schedule.section_heads : schedule.last_section_heads;
  const int32_t back = heads.divide(in_section);
  const int32_t tile = schedule.tiles_per_head - 1 - back;
  const int32_t head = section * schedule.section_heads.value + in_section - back * heads.value;
  const int32_t b = schedule.num_kv_heads.divide(head);

  WorkTile w;
  w.sequence = read_sequence(params.batch, params.kv, b, params.fault);
  w.kv_head = head - b * schedule.num_kv_heads.value;
  w.first_token = tile * schedule.tokens_per_tile;
  const bool mine =
      static_cast<int64_t>(w.sequence.q_len) * schedule.group_size > schedule.min_rows;
  w.tokens = mine ? min_i32(schedule.tokens_per_tile, w.sequence.q_len - w.first_token) : 0;
  w.prefix_len = params.prefix_lens != nullptr ? params.prefix_lens[b] : params.prefix_len;
  w.keys = w.mask(params).rows(w.first_token, w.first_token + w.tokens - 1);
  return w;
}

}  // namespace flash_gqa::cuda::sm90
