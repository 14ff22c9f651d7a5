// top_k and sample. The arithmetic that back ends must agree on is in cuda/sampling.h.
#include "../../cuda/sampling.h"

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "micro.h"
#include "parallel.h"

namespace flash_gqa::cpu {
namespace {

// One row of logits, widened, and the scratch to sample from it. A vocabulary is large, so a thread
// keeps its buffers from row to row.
struct LogitRow {
  std::vector<float> logits;
  std::vector<uint64_t> weights;
  int32_t best;  // id of the largest logit, the smallest such id
  float max;

  LogitRow& load(const void* base, DType dtype, int64_t row, int32_t vocab_size) {
    logits.resize(vocab_size);
    weights.resize(vocab_size);
    const int64_t offset = row * vocab_size * static_cast<int64_t>(dtype_bytes(dtype));
    micro().to_f32(logits.data(), static_cast<const char*>(base) + offset, dtype, vocab_size);
    best = 0;
    for (int32_t id = 0; id < vocab_size; ++id) {
      logits[id] = read_logit(logits[id]);
      if (logits[id] > logits[best]) best = id;
    }
    max = logits[best];
    return *this;
  }

  int32_t size() const { return static_cast<int32_t>(logits.size()); }

  uint64_t weigh(float temperature) {
    uint64_t total = 0;
    for (int32_t id = 0; id < size(); ++id) {
      weights[id] = sampling_weight(logits[id], max, temperature);
      total += weights[id];
    }
    return total;
  }

  // Weights of ids behind the cut become 0. Returns the sum of the others.
  uint64_t apply(SampleCut cut) {
    uint64_t total = 0;
    for (int32_t id = 0; id < size(); ++id) {
      if (!cut.allows(order_key(logits[id]), id)) weights[id] = 0;
      total += weights[id];
    }
    return total;
  }
};

LogitRow& thread_row() {
  static thread_local LogitRow row;
  return row;
}

// The smallest set of ids, largest logit first, whose measures sum to at least `target`, which the
// sum of all must reach.
template <class Measure>
SampleCut select(const LogitRow& row, uint64_t target, const Measure& measure) {
  uint32_t prefix = 0;
  for (int shift = kFirstDigit; shift >= 0; shift -= kDigitBits) {
    uint64_t histogram[kDigitBins] = {};
    for (int32_t id = 0; id < row.size(); ++id) {
      const uint32_t key = order_key(row.logits[id]);
      if (matches_prefix(key, prefix, shift)) histogram[digit_of(key, shift)] += measure(id);
    }
    uint32_t digit = kDigitBins - 1;
    for (; digit > 0 && histogram[digit] < target; --digit) target -= histogram[digit];
    prefix |= digit << shift;
  }
  for (int32_t id = 0; id < row.size(); ++id) {
    if (order_key(row.logits[id]) != prefix) continue;
    if (measure(id) >= target) return {prefix, id};
    target -= measure(id);
  }
  return {prefix, row.size() - 1};
}

int32_t draw(LogitRow& row, const SampleParams& params, int64_t r) {
  const float temperature = params.temperature[r];
  if (!(temperature > 0.0f) || row.max == minus_infinity()) return row.best;
  uint64_t total = row.weigh(temperature);
  const int32_t top_k = params.top_k[r];
  if (top_k > 0 && top_k < row.size())
    total = row.apply(select(row, top_k, [](int32_t) { return uint64_t{1}; }));
  const float top_p = params.top_p[r];
  if (top_p < 1.0f) {
    total = row.apply(
        select(row, top_p_target(total, top_p), [&](int32_t id) { return row.weights[id]; }));
  }
  uint64_t left = draw_below(total, params.seed[2 * r], params.seed[2 * r + 1], params.counter[r]);
  int32_t id = 0;
  while (left >= row.weights[id]) left -= row.weights[id++];
  return id;
}

}  // namespace

void sample(const SampleParams& params) {
  parallel_for(params.rows, [&](int64_t r) {
    LogitRow& row = thread_row().load(params.logits, params.dtype, r, params.vocab_size);
    const int32_t id = draw(row, params, r);
    params.ids[r] = id;
    if (params.log_probs != nullptr)
      params.log_probs[r] = log_probability(row.logits[id], row.max, row.weigh(1.0f));
  });
}

void top_k(const TopKParams& params) {
  parallel_for(params.rows, [&](int64_t r) {
    LogitRow& row = thread_row().load(params.logits, params.dtype, r, params.vocab_size);
    const uint64_t total = row.weigh(1.0f);
    // The best so far, descending. A later id goes behind its equals.
    int32_t best[kMaxTopK];
    int32_t count = 0;
    for (int32_t id = 0; id < row.size(); ++id) {
      const float logit = row.logits[id];
      if (count == params.k && !(logit > row.logits[best[count - 1]])) continue;
      int32_t place = count < params.k ? count++ : count - 1;
      for (; place > 0 && logit > row.logits[best[place - 1]]; --place)
        best[place] = best[place - 1];
      best[place] = id;
    }
    for (int32_t i = 0; i < params.k; ++i) {
      const int64_t out = r * params.k + i;
      params.ids[out] = i < count ? best[i] : -1;
      params.log_probs[out] =
          i < count ? log_probability(row.logits[best[i]], row.max, total) : minus_infinity();
    }
  });
}

}  // namespace flash_gqa::cpu
