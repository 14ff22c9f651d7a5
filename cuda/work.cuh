// One block's share of a forward launch: which rows, which keys. Built once per block, from values
// read on the device, and kept in shared memory.
#pragma once

#include "forward_args.h"
#include "kv_source.h"
#include "mask.h"
#include "split.h"

namespace flash_gqa::cuda {

// A row of the tile, unpacked.
struct PackedRow {
  int32_t token;  // of the sequence's q_len
  int32_t head;   // query head
};

struct Work {
  int32_t item;
  int32_t split;
  int32_t row_tile;
  int32_t kv_head;
  int32_t batch_index;
  int32_t group_size;
  Sequence seq;
  KvSource source;
  Mask mask;
  int32_t first_row;  // of the sequence's rows
  int32_t num_rows;   // rows of the tile in use
  KeyRange visible;   // keys that at least one row sees
  KeyRange common;    // keys that every row sees
  TileRange tiles;
  SplitPlan plan;
  int32_t first_tile;  // the split's keys: tiles [first_tile, first_tile + num_tiles) of `tiles`
  int32_t num_tiles;
  bool active;  // false: nothing to do for this block

  __device__ Work(const ForwardArgs& args, int32_t item_index, int32_t split_index)
      : item(item_index),
        split(split_index),
        row_tile(place(args).row_tile),
        kv_head(place(args).head % args.params.num_kv_heads),
        batch_index(place(args).head / args.params.num_kv_heads),
        group_size(args.params.num_q_heads / args.params.num_kv_heads),
        seq(read_sequence(args.params.batch, args.params.kv, batch_index, args.params.fault)),
        source(args.params.kv, seq, args.params.num_kv_heads, kv_head, args.params.head_dim,
               args.params.fault),
        mask{seq.q_len,
             seq.kv_len,
             args.params.causal,
             args.params.window,
             args.params.sink_tokens,
             args.params.prefix_lens != nullptr ? args.params.prefix_lens[batch_index]
                                                : args.params.prefix_len},
        first_row(row_tile * args.tile_q),
        num_rows(min_i32(args.tile_q, seq.q_len * group_size - first_row)),
        visible(num_rows > 0 ? mask.rows(first_token(), last_token()) : KeyRange{0, 0, 0}),
        common(num_rows > 0 ? mask.common(first_token(), last_token()) : KeyRange{0, 0, 0}),
        tiles(visible, args.tile_kv),
        plan(tiles.count(), args.max_splits, args.split_tiles),
        first_tile(split * plan.tiles_per_split),
        num_tiles(max_i32(0, min_i32(plan.tiles_per_split, tiles.count() - first_tile))) {
    const int32_t rows = seq.q_len * group_size;
    active =
        rows > args.min_rows && rows <= args.max_rows && num_rows > 0 && split < plan.num_splits;
  }

  __device__ int32_t first_key(int32_t tile) const { return tiles.key(first_tile + tile); }
  __device__ PackedRow row(int32_t r) const {
    const int32_t packed = first_row + r;
    return {packed / group_size, kv_head * group_size + packed % group_size};
  }
  // The keys that row r of the tile sees; rows beyond the last are treated as the last.
  __device__ KeyRange keys_of_row(int32_t r) const {
    return mask.row((first_row + min_i32(r, num_rows - 1)) / group_size);
  }
  __device__ int64_t q_offset(const AttentionParams& params, PackedRow row) const {
    return (static_cast<int64_t>(seq.q_start) + row.token) * params.q_stride_token +
           static_cast<int64_t>(row.head) * params.head_dim;
  }
  // Index of the row in lse; times head_dim: its offset in o.
  __device__ int64_t o_row(const AttentionParams& params, PackedRow row) const {
    return (static_cast<int64_t>(seq.q_start) + row.token) * params.num_q_heads + row.head;
  }
  __device__ int64_t partial_row(const ForwardArgs& args, int32_t of_split, int32_t r) const {
    return (static_cast<int64_t>(item) * args.max_splits + of_split) * args.item_rows + r;
  }

 private:
  // Later rows see more keys: the longest tiles of a section's heads start first.
  struct Place {
    int32_t row_tile;
    int32_t head;  // batch_index * num_kv_heads + kv_head
  };
  __device__ Place place(const ForwardArgs& args) const {
    const int32_t section = item / (args.section_heads * args.row_tiles);
    const int32_t first_head = section * args.section_heads;
    const int32_t heads = min_i32(
        args.section_heads, args.params.batch.batch_size * args.params.num_kv_heads - first_head);
    const int32_t in_section = item - first_head * args.row_tiles;
    return {args.row_tiles - 1 - in_section / heads, first_head + in_section % heads};
  }
  __device__ int32_t first_token() const { return first_row / group_size; }
  __device__ int32_t last_token() const { return (first_row + num_rows - 1) / group_size; }
};

}  // namespace flash_gqa::cuda
