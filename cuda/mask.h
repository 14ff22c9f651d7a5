// The only place that knows which keys a query sees: causal, prefix, window and sinks, as two
// intervals of keys.
//
//          0        sink           lo                    hi        kv_len
//   keys   |#########|. . . . . . . |#####################|. . . . . |
//           sinks      masked         band                  masked (the future)
//
// Key j is visible to position p iff j < max(p + 1, prefix_len) and (j > p - window or j <
// sink_tokens). Bounds are run-time values, so the window costs no kernel variant. Compiles with
// plain g++ and clang.
#pragma once

#include "params.h"

namespace flash_gqa {

GQA_HOST_DEVICE int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
GQA_HOST_DEVICE int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

// Keys [0, sink_end) and [lo, hi), with sink_end <= lo <= hi: disjoint, ascending, possibly empty.
struct KeyRange {
  int32_t sink_end;
  int32_t lo;
  int32_t hi;

  // No short circuit: kernels evaluate this for whole tiles, where a branch costs more than a
  // comparison.
  GQA_HOST_DEVICE bool contains(int32_t key) const {
    return (static_cast<uint32_t>(key - lo) < static_cast<uint32_t>(hi - lo)) | (key < sink_end);
  }
  GQA_HOST_DEVICE int32_t count() const { return sink_end + (hi - lo); }
  // The i-th visible key, 0 <= i < count().
  GQA_HOST_DEVICE int32_t key(int32_t i) const { return i < sink_end ? i : lo + (i - sink_end); }
};

struct Mask {
  int32_t q_len;
  int32_t kv_len;
  int32_t causal;
  int32_t window;
  int32_t sink_tokens;
  int32_t prefix_len;

  // The keys that query row `row` of this sequence sees.
  GQA_HOST_DEVICE KeyRange row(int32_t row) const {
    if (!causal) return {0, 0, kv_len};
    const int32_t position = kv_len - q_len + row;
    const int32_t hi = max_i32(0, min_i32(kv_len, max_i32(position + 1, prefix_len)));
    // window is compared before it is subtracted: position - window + 1 could overflow for a huge
    // window.
    const int32_t first = window > 0 && window <= position ? position - window + 1 : 0;
    const int32_t lo = min_i32(first, hi);
    const int32_t sink_end = min_i32(sink_tokens, hi);
    // Where the sinks touch the band they are one interval, so that tiles are not visited twice.
    if (sink_end >= lo) return {0, 0, hi};
    return {sink_end, lo, hi};
  }

  // Keys that at least one of rows [first, last] sees. Both bounds are monotonic in the row, so the
  // union of the bands is one interval.
  GQA_HOST_DEVICE KeyRange rows(int32_t first, int32_t last) const {
    const KeyRange a = row(first);
    const KeyRange b = row(last);
    const int32_t hi = max_i32(a.hi, b.hi);
    const int32_t sink_end = max_i32(a.sink_end, b.sink_end);
    const int32_t lo = min_i32(a.lo, hi);
    if (sink_end >= lo) return {0, 0, hi};
    return {sink_end, lo, hi};
  }

  // Keys that every one of rows [first, last] sees: a tile inside one of its intervals needs no
  // predicate.
  GQA_HOST_DEVICE KeyRange common(int32_t first, int32_t last) const {
    const KeyRange a = row(first);
    const KeyRange b = row(last);
    const int32_t hi = min_i32(a.hi, b.hi);
    const int32_t lo = min_i32(max_i32(a.lo, b.lo), hi);
    // A fused row has no separate sinks: its band starts at 0 and covers the other row's sinks.
    const int32_t sink_end =
        min_i32(min_i32(lo, a.lo == 0 ? a.hi : a.sink_end), b.lo == 0 ? b.hi : b.sink_end);
    return {sink_end, lo, hi};
  }
};

// Visits the tiles of `tile` keys that a KeyRange touches, ascending: first the sinks', then the
// band's. Tiles start at multiples of `tile`, whatever the pages, so results do not depend on the
// page size.
struct TileRange {
  int32_t tile;
  int32_t sink_tiles;  // tiles [0, sink_tiles)
  int32_t band_first;  // tiles [band_first, band_last)
  int32_t band_last;

  GQA_HOST_DEVICE TileRange(KeyRange keys, int32_t tile_keys) : tile(tile_keys) {
    band_first = keys.lo / tile;
    band_last = keys.hi > keys.lo ? (keys.hi + tile - 1) / tile : band_first;
    sink_tiles = min_i32((keys.sink_end + tile - 1) / tile,
                         band_last > band_first ? band_first : (keys.sink_end + tile - 1) / tile);
  }
  GQA_HOST_DEVICE int32_t count() const { return sink_tiles + (band_last - band_first); }
  // The first key of the i-th tile, 0 <= i < count().
  GQA_HOST_DEVICE int32_t key(int32_t i) const {
    return (i < sink_tiles ? i : band_first + (i - sink_tiles)) * tile;
  }
};

GQA_HOST_DEVICE bool tile_is_full(const KeyRange& common, int32_t first_key, int32_t tile) {
  return first_key + tile <= common.sink_end ||
         (first_key >= common.lo && first_key + tile <= common.hi);
}

// Tiles [first, first + count) of a range.
struct TileRun {
  int32_t first;
  int32_t count;
  GQA_HOST_DEVICE bool contains(int32_t i) const {
    return static_cast<uint32_t>(i - first) < static_cast<uint32_t>(count);
  }
};

// The tiles of the band that are full; those of the sinks may be too.
GQA_HOST_DEVICE TileRun full_band(const KeyRange& common, const TileRange& tiles) {
  const int32_t before = tiles.band_first - tiles.sink_tiles;
  const int32_t first =
      max_i32(tiles.sink_tiles, (common.lo + tiles.tile - 1) / tiles.tile - before);
  return {first, max_i32(0, common.hi / tiles.tile - before - first)};
}

// How many of the tiles i, i - 1, ... are full.
GQA_HOST_DEVICE int32_t full_tiles_down(const KeyRange& common, const TileRange& tiles, int32_t i) {
  const int32_t first_key = tiles.key(i);
  if (!tile_is_full(common, first_key, tiles.tile)) return 0;
  if (first_key + tiles.tile <= common.sink_end) return i + 1;
  if (i < tiles.sink_tiles) return 1;
  // Those of the band that start at common.lo or later; the sinks' tiles are another run.
  const int32_t run = (first_key - common.lo) / tiles.tile + 1;
  return min_i32(run, i + 1 - tiles.sink_tiles);
}

// Rows of sliceWindow's result: what the query at position kv_len - 1 sees.
GQA_HOST_DEVICE int32_t slice_window_length(int32_t kv_len, int32_t window, int32_t sink_tokens) {
  const Mask mask{1, kv_len, 1, window, sink_tokens, 0};
  return kv_len > 0 ? mask.row(0).count() : 0;
}

}  // namespace flash_gqa
