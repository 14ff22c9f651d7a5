// How decode divides its work: all tiles of all (sequence, KV head) pairs in one line, cut into equal ranges, one a
// block. Decided on the device from what the rows see, so that ragged batches are balanced and a captured graph stays
// right while kv_len grows.
//
//   pairs    |---- 0 ----|-- 1 --|------- 2 -------|- 3 -|      tiles of each pair, ascending keys
//   blocks   |    0    |    1    |    2    |    3    |  4  |    equal ranges
//
// A pair that lies in one block is finished there. A pair cut by a block boundary leaves one part in each block that
// it touches. A block has at most two such parts: one that began before it (slot 0), and one that goes on behind it
// (slot 1). Parts are merged in key order:
//
// 1. Blocks of a cluster that end with the same pair form a unit. They read each other's parts from shared memory,
//    each merges a slice of the rows, and the unit leaves one part. A block that goes on to another pair is a unit of
//    its own: nobody waits in the middle of a range.
// 2. A pair of several units leaves their parts in memory, and the last block to arrive there merges them.
#pragma once

#include "../kv_source.h"
#include "../mask.h"

namespace flash_gqa::cuda::sm90 {

struct DecodeShape {
  int32_t tile_kv;
  int32_t min_rows;            // this launch's sequences: min_rows < q_len * group_size <= max_rows
  int32_t max_rows;
  int32_t group_size;
  int32_t min_tiles;           // per block: fewer would cost more in merging than they save
};

// One sequence as decode sees it.
struct DecodeSequence {
  Sequence sequence;
  Mask mask;
  KeyRange keys;
  int32_t rows;   // q_len * group_size, or 0: another launch's
  int32_t tiles;  // of each of its KV heads; at least 1 where rows > 0, so that rows without keys are written
};

__device__ __forceinline__ DecodeSequence read_decode_sequence(const AttentionParams& params,
                                                               const DecodeShape& shape, int32_t b) {
  DecodeSequence s;
  s.sequence = read_sequence(params.batch, params.kv, b, params.fault);
  s.mask = Mask{s.sequence.q_len, s.sequence.kv_len, params.causal, params.window,
                params.sink_tokens,
                params.prefix_lens != nullptr ? params.prefix_lens[b] : params.prefix_len};
  s.rows = s.sequence.q_len * shape.group_size;
  s.tiles = 0;
  s.keys = KeyRange{0, 0, 0};
  if (s.rows <= shape.min_rows || s.rows > shape.max_rows) {
    s.rows = 0;
    return s;
  }
  s.keys = s.mask.rows(0, s.sequence.q_len - 1);
  s.tiles = max_i32(1, TileRange(s.keys, shape.tile_kv).count());
  return s;
}

// Where a block begins: pair (batch_index, kv_head), at `tile` of its tiles.
struct BlockRange {
  int32_t batch_index;
  int32_t kv_head;
  int32_t tile;
  int32_t first_pair_tile;  // index on the line of the pair's tile 0
  int32_t begin;            // range of this block on the line
  int32_t end;
  int32_t per_block;
  int32_t total;
};

// Run by one whole warp.
__device__ __forceinline__ BlockRange find_block_range(const AttentionParams& params,
                                                       const DecodeShape& shape) {
  constexpr uint32_t kAll = 0xffffffff;
  const int lane = threadIdx.x % 32;
  const int32_t heads = params.num_kv_heads;
  const int32_t batch_size = params.batch.batch_size;
  const auto tiles_of = [&](int32_t b) {
    return b < batch_size ? read_decode_sequence(params, shape, b).tiles * heads : 0;
  };

  int32_t total = 0;
  const int32_t first_tiles = tiles_of(lane);  // kept: most batches fit into one warp
  for (int32_t base = 0; base < batch_size; base += 32) {
    total += __reduce_add_sync(kAll, base == 0 ? first_tiles : tiles_of(base + lane));
  }
  BlockRange range{};
  range.total = total;
  const int32_t blocks = gridDim.x;
  range.per_block = max_i32(shape.min_tiles, (total + blocks - 1) / blocks);
  range.begin = min_i32(total, static_cast<int32_t>(blockIdx.x) * range.per_block);
  range.end = min_i32(total, range.begin + range.per_block);
  if (range.begin >= range.end) return range;

  int32_t before = 0;
  for (int32_t base = 0; base < batch_size; base += 32) {
    const int32_t tiles = base == 0 ? first_tiles : tiles_of(base + lane);
    int32_t inclusive = tiles;
    for (int step = 1; step < 32; step *= 2) {
      const int32_t other = __shfl_up_sync(kAll, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    const uint32_t reached = __ballot_sync(kAll, before + inclusive > range.begin);
    if (reached != 0) {
      const int owner = __ffs(reached) - 1;
      const int32_t sequence_tiles = __shfl_sync(kAll, tiles, owner);
      const int32_t sequence_begin = before + __shfl_sync(kAll, inclusive, owner) - sequence_tiles;
      const int32_t pair_tiles = sequence_tiles / heads;
      range.batch_index = base + owner;
      range.kv_head = (range.begin - sequence_begin) / pair_tiles;
      range.first_pair_tile = sequence_begin + range.kv_head * pair_tiles;
      range.tile = range.begin - range.first_pair_tile;
      return range;
    }
    before += __shfl_sync(kAll, inclusive, 31);
  }
  return range;
}

// The blocks that a pair touches, and their units.
struct PairBlocks {
  int32_t first;
  int32_t last;
  bool last_goes_on;  // to another pair
  int32_t cluster_size;  // a power of two

  // Blocks [begin, end).
  struct Unit {
    int32_t begin;
    int32_t end;
    __device__ __forceinline__ int32_t size() const { return end - begin; }
  };
  __device__ __forceinline__ Unit unit(int32_t block) const {
    if (block == last && last_goes_on) return {last, last + 1};
    const int32_t cluster = block & -cluster_size;
    return {max_i32(first, cluster), min_i32(last + (last_goes_on ? 0 : 1), cluster + cluster_size)};
  }
  // Where the part of a unit lies in memory.
  __device__ __forceinline__ int32_t slot(Unit unit) const { return unit.begin == first ? 1 : 0; }
};

// Walks the segments of a block: runs of tiles of one pair.
struct SegmentWalk {
  const AttentionParams& params;
  const DecodeShape& shape;
  BlockRange at;
  DecodeSequence s;
  int32_t count;     // tiles of this segment
  bool has_sequence = false;

  __device__ __forceinline__ SegmentWalk(const AttentionParams& p, const DecodeShape& d,
                                         const BlockRange& range)
      : params(p), shape(d), at(range), count(0) {}

  // Moves to the next segment; false: the block is done.
  __device__ __forceinline__ bool next() {
    at.tile += count;
    at.begin += count;
    if (at.begin >= at.end) return false;
    if (has_sequence && at.tile == s.tiles) {
      at.tile = 0;
      at.first_pair_tile = at.begin;
      if (++at.kv_head == params.num_kv_heads) {
        at.kv_head = 0;
        has_sequence = false;
        ++at.batch_index;
      }
    }
    while (!has_sequence) {
      if (at.batch_index >= params.batch.batch_size) return false;
      s = read_decode_sequence(params, shape, at.batch_index);
      has_sequence = s.tiles > 0;
      if (!has_sequence) ++at.batch_index;
    }
    count = min_i32(s.tiles - at.tile, at.end - at.begin);
    return true;
  }

  __device__ __forceinline__ bool whole() const { return count == s.tiles; }
  __device__ __forceinline__ bool ends_range() const { return at.begin + count == at.end; }
  __device__ __forceinline__ int32_t slot() const { return at.tile > 0 ? 0 : 1; }
  __device__ __forceinline__ PairBlocks blocks(int32_t cluster_size) const {
    const int32_t end = at.first_pair_tile + s.tiles;
    const int32_t last = (end - 1) / at.per_block;
    return {at.first_pair_tile / at.per_block, last,
            end < min_i32(at.total, (last + 1) * at.per_block), cluster_size};
  }
};

}  // namespace flash_gqa::cuda::sm90
