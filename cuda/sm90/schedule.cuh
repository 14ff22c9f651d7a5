// Which tile a block works on: persistent blocks draw work indices from a counter, longest first.
#pragma once

#include "../kv_source.h"
#include "../mask.h"

namespace flash_gqa::cuda::sm90 {

// Filled on the host. `counters` are two words, zero between launches: each launch leaves them
// zero.
struct Schedule {
  int32_t* counters;
  int32_t min_rows;           // sequences of at most this many rows are another launch's
  int32_t tokens_per_tile;    // query tokens of one tile: kTileQ / group_size
  int32_t tiles_per_head;     // ceil(max_q_len / tokens_per_tile)
  int32_t heads_per_section;  // (sequence, KV head) pairs whose K and V fit in the L2 together
  int32_t total_heads;        // batch_size * num_kv_heads
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
  Mask mask;
  KeyRange keys;
  int32_t kv_head;
  int32_t first_token;
  int32_t tokens;  // <= 0: this sequence is shorter; nothing to do
};

__device__ __forceinline__ WorkTile decode_work(const AttentionParams& params,
                                                const Schedule& schedule, int32_t work) {
  // Within a section, the last tiles of all heads come first: under a causal mask they are the
  // longest, and what is left at the end is short.
  const int32_t section_tiles = schedule.heads_per_section * schedule.tiles_per_head;
  const int32_t section = work / section_tiles;
  const int32_t in_section = work - section * section_tiles;
  const int32_t first_head = section * schedule.heads_per_section;
  const int32_t heads = min_i32(schedule.heads_per_section, schedule.total_heads - first_head);
  const int32_t tile = schedule.tiles_per_head - 1 - in_section / heads;
  const int32_t head = first_head + in_section % heads;
  const int32_t b = head / params.num_kv_heads;

  WorkTile w;
  w.sequence = read_sequence(params.batch, params.kv, b, params.fault);
  w.kv_head = head - b * params.num_kv_heads;
  w.first_token = tile * schedule.tokens_per_tile;
  const bool mine =
      static_cast<int64_t>(w.sequence.q_len) * schedule.group_size > schedule.min_rows;
  w.tokens = mine ? min_i32(schedule.tokens_per_tile, w.sequence.q_len - w.first_token) : 0;
  w.mask = Mask{w.sequence.q_len,
                w.sequence.kv_len,
                params.causal,
                params.window,
                params.sink_tokens,
                params.prefix_lens != nullptr ? params.prefix_lens[b] : params.prefix_len};
  w.keys = w.mask.rows(w.first_token, w.first_token + w.tokens - 1);
  return w;
}

}  // namespace flash_gqa::cuda::sm90
