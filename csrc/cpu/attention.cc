// Attention in tiles, as on the GPU: a work item is one tile of packed query rows (row r is token
// r / group_size, head r % group_size) against all keys that they see, so that K and V are read
// once per KV head for the whole group. Memory is O(tile) per thread, whatever the lengths.
//
// Bits. Key tiles start at multiples of kTileKeys and splits at multiples of the split length; a
// row's state passes unchanged through tiles in which it sees nothing; and every element is summed
// in key order. So a row's result depends on its own keys and parameters alone: not on pages,
// threads or batch, nor on whether it came in a prefill or a decode step.
#include <algorithm>
#include <memory>
#include <vector>

#include "../../cuda/kv_source.h"
#include "../../cuda/mask.h"
#include "../../cuda/softmax.h"
#include "kernels.h"
#include "micro.h"
#include "parallel.h"

namespace flash_gqa::cpu {
namespace {

constexpr int kTileRows = 64;
constexpr int kTileKeys = 64;
constexpr int kSplitKeys = 4096;    // where params.fixed_split leaves the choice
constexpr int kItemsPerThread = 4;  // fewer: the splits of an item are shared out too

// The result of some keys for one tile of rows, not yet normalised.
struct Part {
  SoftmaxState* state;  // [rows]
  float* o;             // [rows, dim_padded]
};

struct alignas(64) Scratch {
  float qt[kMaxHeadDim * kTileRows];       // [head_dim, rows_padded]
  float k[kTileKeys * kMaxHeadDim];        // [keys, dim_padded]
  float v[kTileKeys * kMaxHeadDim];        // [keys, dim_padded]
  float s[kTileKeys * kTileRows];          // [keys, rows_padded]: scores, then probabilities
  float part_o[kTileRows * kMaxHeadDim];   // [rows, dim_padded]
  float total_o[kTileRows * kMaxHeadDim];  // [rows, dim_padded]
  float tile_max[kTileRows];
  float tile_sum[kTileRows];
  float reference[kTileRows];
  float factor[kTileRows];
  SoftmaxState part_state[kTileRows];
  SoftmaxState total_state[kTileRows];
  int64_t k_offset[kTileKeys];
  int64_t v_offset[kTileKeys];
};

// Tiles of the range before tile `t`.
int32_t tiles_before(const TileRange& tiles, int32_t t) {
  const int32_t band = tiles.band_last - tiles.band_first;
  return std::min(t, tiles.sink_tiles) + std::clamp(t - tiles.band_first, 0, band);
}

// One tile of query rows of one sequence and one KV head.
class Item {
 public:
  Item(const AttentionParams& params, const Sequence& sequence, const Mask& mask, int kv_head,
       int64_t tile)
      : params_(params),
        sequence_(sequence),
        mask_(mask),
        source_(params.kv, sequence, params.num_kv_heads, kv_head, params.head_dim, params.fault),
        kv_head_(kv_head),
        group_(params.num_q_heads / params.num_kv_heads),
        first_row_(tile * kTileRows),
        rows_(static_cast<int>(
            std::min<int64_t>(kTileRows, int64_t{sequence.q_len} * group_ - first_row_))),
        rows_padded_(pad_floats(rows_)),
        dim_padded_(pad_floats(params.head_dim)),
        first_token_(token(0)),
        last_token_(token(rows_ - 1)),
        visible_(mask.rows(first_token_, last_token_)),
        common_(mask.common(first_token_, last_token_)),
        tiles_(visible_, kTileKeys) {}

  int rows() const { return rows_; }
  // Splits that hold a visible key, as [first, last).
  int32_t first_split(int32_t split_tiles) const {
    return tiles_.count() == 0 ? 0 : tiles_.key(0) / kTileKeys / split_tiles;
  }
  int32_t last_split(int32_t split_tiles) const {
    if (tiles_.count() == 0) return 0;
    return tiles_.key(tiles_.count() - 1) / kTileKeys / split_tiles + 1;
  }

  void load_queries(Scratch& scratch) const;
  // The keys of one split; `part` is overwritten.
  void attend(int32_t split, int32_t split_tiles, Scratch& scratch, Part part) const;
  void clear(Part total) const;
  void fold(Part total, Part part) const;
  void finish(Part total) const;

 private:
  int32_t token(int row) const { return static_cast<int32_t>((first_row_ + row) / group_); }
  int head(int row) const {
    return kv_head_ * group_ + static_cast<int>((first_row_ + row) % group_);
  }
  int64_t packed_row(int row) const { return int64_t{sequence_.q_start} + token(row); }

  bool find_rows(int32_t first_key, int keys, Scratch& scratch) const;
  void hide(int32_t first_key, int keys, Scratch& scratch) const;

  const AttentionParams& params_;
  const Sequence& sequence_;
  const Mask& mask_;
  KvSource source_;
  int kv_head_;
  int group_;
  int64_t first_row_;  // in units of q_len * group_size
  int rows_;
  int rows_padded_;
  int dim_padded_;
  int32_t first_token_;
  int32_t last_token_;
  KeyRange visible_;  // keys that at least one row sees
  KeyRange common_;   // keys that every row sees
  TileRange tiles_;
};

void Item::load_queries(Scratch& scratch) const {
  const int dim = params_.head_dim;
  const auto* q = static_cast<const char*>(params_.q);
  const auto bytes = static_cast<int64_t>(dtype_bytes(params_.dtype));
  std::fill_n(scratch.qt, dim * rows_padded_, 0.0f);
  for (int row = 0; row < rows_; ++row) {
    const int64_t offset = packed_row(row) * params_.q_stride_token + int64_t{head(row)} * dim;
    float* line = scratch.part_o;  // free until the first split
    micro().to_f32(line, q + offset * bytes, params_.dtype, dim);
    for (int d = 0; d < dim; ++d) scratch.qt[d * rows_padded_ + row] = line[d];
  }
}

// Finds the key rows of a tile. Keys that no row of the item sees, and keys of invalid pages, are
// read as zeros: whatever lies there (NaN included) never meets a probability. Returns whether a
// page was invalid.
bool Item::find_rows(int32_t first_key, int keys, Scratch& scratch) const {
  bool invalid = false;
  for (int i = 0; i < keys; ++i) {
    const bool seen = visible_.contains(first_key + i);
    scratch.k_offset[i] = seen ? source_.k_offset(first_key + i) : -1;
    scratch.v_offset[i] = scratch.k_offset[i] < 0 ? -1 : source_.v_offset(first_key + i);
    invalid |= seen && scratch.k_offset[i] < 0;
  }
  return invalid;
}

void Item::hide(int32_t first_key, int keys, Scratch& scratch) const {
  for (int row = 0; row < rows_;) {
    const int32_t t = token(row);
    int end = row + 1;
    while (end < rows_ && token(end) == t) ++end;
    const KeyRange range = mask_.row(t);
    for (int i = 0; i < keys; ++i)
      if (scratch.k_offset[i] < 0 || !range.contains(first_key + i))
        std::fill(scratch.s + i * rows_padded_ + row, scratch.s + i * rows_padded_ + end,
                  minus_infinity());
    row = end;
  }
}

void Item::attend(int32_t split, int32_t split_tiles, Scratch& scratch, Part part) const {
  const Micro& m = micro();
  const void* values = source_.paged() ? params_.kv.k : params_.kv.v;
  const bool capped = params_.soft_cap > 0.0f;
  const float scale = capped ? params_.sm_scale / params_.soft_cap : params_.sm_scale * kLog2E;
  clear(part);

  const int32_t end = tiles_before(tiles_, (split + 1) * split_tiles);
  for (int32_t i = tiles_before(tiles_, split * split_tiles); i < end; ++i) {
    const int32_t first_key = tiles_.key(i);
    const int keys = std::min(kTileKeys, sequence_.kv_len - first_key);
    const bool invalid = find_rows(first_key, keys, scratch);
    m.load_rows(scratch.k, dim_padded_, params_.kv.k, params_.dtype, scratch.k_offset, keys,
                params_.head_dim);
    m.load_rows(scratch.v, dim_padded_, values, params_.dtype, scratch.v_offset, keys,
                params_.head_dim);

    m.scores(scratch.s, scratch.k, dim_padded_, scratch.qt, keys, params_.head_dim, rows_, scale);
    if (capped) m.soft_cap(scratch.s, int64_t{keys} * rows_padded_, params_.soft_cap * kLog2E);
    if (invalid || !tile_is_full(common_, first_key, kTileKeys)) hide(first_key, keys, scratch);

    m.column_max(scratch.s, keys, rows_padded_, scratch.tile_max);
    for (int row = 0; row < rows_; ++row) {
      scratch.factor[row] = part.state[row].raise_max(scratch.tile_max[row]);
      scratch.reference[row] = part.state[row].reference();
    }
    std::fill(scratch.reference + rows_, scratch.reference + rows_padded_, 0.0f);
    m.column_exp2(scratch.s, keys, rows_padded_, scratch.reference, scratch.tile_sum);
    for (int row = 0; row < rows_; ++row) part.state[row].sum += scratch.tile_sum[row];

    m.accumulate(part.o, scratch.s, rows_padded_, scratch.v, dim_padded_, scratch.factor, rows_,
                 keys);
  }
}

void Item::clear(Part part) const {
  std::fill_n(part.state, rows_, SoftmaxState{});
  std::fill_n(part.o, rows_ * dim_padded_, 0.0f);
}

void Item::fold(Part total, Part part) const {
  for (int row = 0; row < rows_; ++row) {
    const SoftmaxState::Factors factors = total.state[row].merge(part.state[row]);
    float* to = total.o + row * dim_padded_;
    const float* from = part.o + row * dim_padded_;
    for (int d = 0; d < dim_padded_; ++d) to[d] = to[d] * factors.mine + from[d] * factors.other;
  }
}

void Item::finish(Part total) const {
  const int dim = params_.head_dim;
  auto* o = static_cast<char*>(params_.o);
  const auto bytes = static_cast<int64_t>(dtype_bytes(params_.dtype));
  for (int row = 0; row < rows_; ++row) {
    SoftmaxState& state = total.state[row];
    float factor = 1.0f;
    if (params_.sink_logits != nullptr) factor = state.add_sink(params_.sink_logits[head(row)]);
    float* line = total.o + row * dim_padded_;
    micro().scale(line, factor * state.inverse_sum(), dim);
    const int64_t out_row = packed_row(row) * params_.num_q_heads + head(row);
    micro().from_f32(o + out_row * dim * bytes, params_.dtype, line, dim);
    if (params_.lse != nullptr) params_.lse[out_row] = state.lse();
  }
}

Scratch& thread_scratch() {
  thread_local const std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  return *scratch;
}

// The work of one call: all items, head by head, each head's longest first.
class Work {
 public:
  explicit Work(const AttentionParams& params) : params_(params) {
    const int group = params.num_q_heads / params.num_kv_heads;
    const int64_t split = params.fixed_split > 0 ? params.fixed_split : kSplitKeys;
    split_tiles_ = static_cast<int32_t>((split + kTileKeys - 1) / kTileKeys);
    sequences_.reserve(params.batch.batch_size);
    first_tile_.push_back(0);
    for (int b = 0; b < params.batch.batch_size; ++b) {
      const Sequence s = read_sequence(params.batch, params.kv, b, params.fault);
      const int32_t prefix = params.prefix_lens ? params.prefix_lens[b] : params.prefix_len;
      sequences_.push_back(s);
      masks_.push_back(
          {s.q_len, s.kv_len, params.causal, params.window, params.sink_tokens, prefix});
      const int64_t rows = int64_t{s.q_len} * group;
      first_tile_.push_back(first_tile_.back() + (rows + kTileRows - 1) / kTileRows);
      max_splits_ = std::max(max_splits_, (s.kv_len / kTileKeys + 1) / split_tiles_ + 1);
      max_rows_ = std::max<int64_t>(max_rows_, std::min<int64_t>(rows, kTileRows));
    }
  }

  void run() const {
    const int64_t wanted = int64_t{thread_count()} * kItemsPerThread;
    if (max_splits_ > 1 && items() > 0 && items() < wanted)
      run_split((wanted + items() - 1) / items());
    else
      parallel_for(items(), [this](int64_t i) { run_item(item(i)); });
  }

 private:
  int64_t items() const { return first_tile_.back() * params_.num_kv_heads; }

  Item item(int64_t i) const {
    const int64_t tiles = first_tile_.back();
    const int64_t tile = tiles - 1 - i % tiles;
    const auto after = std::upper_bound(first_tile_.begin(), first_tile_.end(), tile);
    const auto b = static_cast<size_t>(after - first_tile_.begin() - 1);
    return Item(params_, sequences_[b], masks_[b], static_cast<int>(i / tiles),
                tile - first_tile_[b]);
  }

  void run_item(const Item& item) const {
    Scratch& scratch = thread_scratch();
    const Part total{scratch.total_state, scratch.total_o};
    const Part part{scratch.part_state, scratch.part_o};
    item.load_queries(scratch);
    item.clear(total);
    const int32_t last = item.last_split(split_tiles_);
    for (int32_t split = item.first_split(split_tiles_); split < last; ++split) {
      item.attend(split, split_tiles_, scratch, part);
      item.fold(total, part);
    }
    item.finish(total);
  }

  // Few items and many keys: `wave` splits of each item run side by side and are then folded in
  // split order, exactly as run_item folds them.
  void run_split(int64_t wave) const {
    const int64_t dim_padded = pad_floats(params_.head_dim);
    const int64_t slots = items() * (wave + 1);  // of each item: its total, then the wave's parts
    std::vector<SoftmaxState> states(slots * max_rows_);
    std::vector<float> outputs(slots * max_rows_ * dim_padded);
    const auto slot = [&](int64_t i, int64_t j) {
      const int64_t row = (i * (wave + 1) + j) * max_rows_;
      return Part{states.data() + row, outputs.data() + row * dim_padded};
    };
    int32_t first_split = max_splits_;
    int32_t last_split = 0;
    for (int64_t i = 0; i < items(); ++i) {
      first_split = std::min(first_split, item(i).first_split(split_tiles_));
      last_split = std::max(last_split, item(i).last_split(split_tiles_));
    }
    for (int32_t begin = first_split; begin < last_split; begin += static_cast<int32_t>(wave)) {
      parallel_for(items() * wave, [&](int64_t n) {
        const Item work = item(n / wave);
        const auto split = static_cast<int32_t>(begin + n % wave);
        if (split < work.first_split(split_tiles_) || split >= work.last_split(split_tiles_))
          return;
        work.load_queries(thread_scratch());
        work.attend(split, split_tiles_, thread_scratch(), slot(n / wave, 1 + n % wave));
      });
      parallel_for(items(), [&](int64_t i) {
        const Item work = item(i);
        const int32_t end =
            std::min<int32_t>(static_cast<int32_t>(begin + wave), work.last_split(split_tiles_));
        for (int32_t split = std::max(begin, work.first_split(split_tiles_)); split < end; ++split)
          work.fold(slot(i, 0), slot(i, 1 + split - begin));
      });
    }
    parallel_for(items(), [&](int64_t i) { item(i).finish(slot(i, 0)); });
  }

  const AttentionParams& params_;
  std::vector<Sequence> sequences_;
  std::vector<Mask> masks_;
  std::vector<int64_t> first_tile_;  // [batch_size + 1] prefix sums of query tiles
  int32_t split_tiles_ = 0;
  int32_t max_splits_ = 0;
  int64_t max_rows_ = 0;
};

}  // namespace

void attention(const AttentionParams& params) { Work(params).run(); }

}  // namespace flash_gqa::cpu
