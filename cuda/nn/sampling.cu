// top_k and sample: one block per row. The arithmetic that back ends must agree on is in
// sampling.h; integers make every sum here exact, whatever the order of its atomics.
#include <cuda_runtime.h>

#include "../launch.h"
#include "../sampling.h"
#include "../vector.cuh"
#include "reduce.cuh"

namespace flash_gqa::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct LogitRow {
  const T* logits;
  int32_t size;
  int32_t best;  // id of the largest logit, the smallest such id
  float max;

  __device__ LogitRow(const void* base, int32_t vocab_size)
      : logits(static_cast<const T*>(base) + static_cast<int64_t>(blockIdx.x) * vocab_size),
        size(vocab_size) {
    uint64_t largest = 0;
    for (int32_t id = threadIdx.x; id < size; id += kThreads) {
      const uint64_t place = static_cast<uint64_t>(key(id)) << 32 | ~static_cast<uint32_t>(id);
      largest = place > largest ? place : largest;
    }
    largest = reduce_block(largest, Larger{});
    best = static_cast<int32_t>(~static_cast<uint32_t>(largest));
    max = logit(best);
  }

  __device__ float logit(int32_t id) const { return read_logit(logits[id]); }
  __device__ uint32_t key(int32_t id) const { return order_key(logit(id)); }
};

// Sum of measure(id) over all ids.
template <class Measure>
__device__ uint64_t total_of(int32_t size, Measure measure) {
  uint64_t total = 0;
  for (int32_t id = threadIdx.x; id < size; id += kThreads) total += measure(id);
  return reduce_block(total, Plus{});
}

// The first id at which the running sum of measure(id) passes `target`, which the sum of all does.
// A warp sums a stretch of consecutive ids; the one that holds the place walks its stretch again.
template <class Measure>
__device__ int32_t find_running(int32_t size, uint64_t target, Measure measure) {
  __shared__ uint64_t stretch_sums[kWarps];
  __shared__ int32_t found;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int32_t stretch = (size + kThreads - 1) / kThreads * 32;
  const int32_t first = warp * stretch;
  const int32_t end = first + stretch < size ? first + stretch : size;

  uint64_t sum = 0;
  for (int32_t id = first + lane; id < end; id += 32) sum += measure(id);
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (lane == 0) stretch_sums[warp] = sum;
  __syncthreads();

  int holder = 0;
  while (holder < kWarps - 1 && target >= stretch_sums[holder]) target -= stretch_sums[holder++];
  if (warp == holder) {
    for (int32_t base = first; base < end; base += 32) {
      const int32_t id = base + lane;
      uint64_t running = id < end ? measure(id) : 0;
      for (int distance = 1; distance < 32; distance *= 2) {
        const uint64_t before = __shfl_up_sync(kAllLanes, running, distance);
        if (lane >= distance) running += before;
      }
      const unsigned passed = __ballot_sync(kAllLanes, running > target);
      if (passed != 0) {
        if (lane == 0) found = base + __ffs(passed) - 1;
        break;
      }
      target -= __shfl_sync(kAllLanes, running, 31);
    }
  }
  __syncthreads();
  const int32_t result = found;
  __syncthreads();  // found and stretch_sums may be written again
  return result;
}

// 64-bit sums in two words, because shared memory adds 32 bits natively: whoever makes the low word
// wrap carries.
struct Histogram {
  uint32_t low[kDigitBins];
  uint32_t high[kDigitBins];

  __device__ void clear() {
    for (int i = threadIdx.x; i < kDigitBins; i += kThreads) low[i] = high[i] = 0;
  }
  __device__ void add(uint32_t bin, uint64_t value) {
    const uint32_t low_part = static_cast<uint32_t>(value);
    const uint32_t before = atomicAdd(&low[bin], low_part);
    const uint32_t high_part = static_cast<uint32_t>(value >> 32) + (before + low_part < before);
    if (high_part != 0) atomicAdd(&high[bin], high_part);
  }
  __device__ uint64_t sum(uint32_t bin) const {
    return static_cast<uint64_t>(high[bin]) << 32 | low[bin];
  }
};

struct Digit {
  uint32_t value;
  uint64_t target;  // what is left to reach inside its bin
  uint64_t total;   // the bin's sum
};

// The bin, from the highest, in which the running sum reaches `target`. Called by one warp.
__device__ Digit find_digit(const Histogram& histogram, uint64_t target) {
  constexpr int kBinsPerLane = kDigitBins / 32;
  const int lane = threadIdx.x % 32;
  const int top = kDigitBins - 1 - lane * kBinsPerLane;
  uint64_t mine = 0;
  for (int i = 0; i < kBinsPerLane; ++i) mine += histogram.sum(top - i);
  uint64_t running = mine;
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, running, distance);
    if (lane >= distance) running += before;
  }
  const int holder = __ffs(__ballot_sync(kAllLanes, running >= target)) - 1;
  Digit digit{static_cast<uint32_t>(top), target - (running - mine), 0};
  if (lane == holder) {
    while (digit.value > 0 && histogram.sum(digit.value) < digit.target)
      digit.target -= histogram.sum(digit.value--);
    digit.total = histogram.sum(digit.value);
  }
  return {__shfl_sync(kAllLanes, digit.value, holder), __shfl_sync(kAllLanes, digit.target, holder),
          __shfl_sync(kAllLanes, digit.total, holder)};
}

// The smallest set of ids, largest logit first, whose measures sum to at least `target`, which the
// sum of all must reach. Ids of equal logits have equal measures, or 0.
template <class T, class Measure>
__device__ SampleCut select(const LogitRow<T>& row, uint64_t target, Measure measure) {
  __shared__ Histogram histogram;
  __shared__ Digit digit;
  uint32_t prefix = 0;
  for (int shift = kFirstDigit; shift >= 0; shift -= kDigitBits) {
    histogram.clear();
    __syncthreads();
    for (int32_t id = threadIdx.x; id < row.size; id += kThreads) {
      const uint32_t key = row.key(id);
      if (!matches_prefix(key, prefix, shift)) continue;
      const uint64_t value = measure(id);
      if (value != 0) histogram.add(digit_of(key, shift), value);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      const Digit chosen = find_digit(histogram, target);
      if (threadIdx.x == 0) digit = chosen;
    }
    __syncthreads();
    prefix |= digit.value << shift;
    target = digit.target;
  }
  const uint64_t total = digit.total;
  __syncthreads();  // digit may be written again
  const auto tied = [&](int32_t id) {
    return static_cast<uint64_t>(row.key(id) == prefix && measure(id) != 0);
  };
  const uint64_t ties = total_of(row.size, tied);
  const uint64_t each = total / ties;
  const uint64_t needed = (target + each - 1) / each;
  if (needed >= ties) return {prefix, row.size - 1};
  return {prefix, find_running(row.size, needed - 1, tied)};
}

template <class T>
__device__ int32_t draw(const LogitRow<T>& row, const SampleParams& params) {
  const int32_t r = static_cast<int32_t>(blockIdx.x);
  const float temperature = params.temperature[r];
  if (!(temperature > 0.0f) || row.max == minus_infinity()) return row.best;
  SampleCut cut{0, row.size - 1};
  const auto weight = [&](int32_t id) -> uint64_t {
    const float logit = row.logit(id);
    return cut.allows(order_key(logit), id) ? sampling_weight(logit, row.max, temperature) : 0;
  };
  const int32_t top_k = params.top_k[r];
  if (top_k > 0 && top_k < row.size) cut = select(row, top_k, [](int32_t) { return uint64_t{1}; });
  uint64_t total = total_of(row.size, weight);
  const float top_p = params.top_p[r];
  if (top_p < 1.0f) {
    cut = select(row, top_p_target(total, top_p), weight);
    total = total_of(row.size, weight);
  }
  const uint64_t drawn =
      draw_below(total, params.seed[2 * r], params.seed[2 * r + 1], params.counter[r]);
  return find_running(row.size, drawn, weight);
}

template <class T>
__device__ uint64_t full_total(const LogitRow<T>& row) {
  return total_of(row.size,
                  [&](int32_t id) { return sampling_weight(row.logit(id), row.max, 1.0f); });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ SampleParams params) {
  const LogitRow<T> row(params.logits, params.vocab_size);
  const int32_t id = draw(row, params);
  if (threadIdx.x == 0) params.ids[blockIdx.x] = id;
  if (params.log_probs == nullptr) return;
  const uint64_t total = full_total(row);
  if (threadIdx.x == 0)
    params.log_probs[blockIdx.x] = log_probability(row.logit(id), row.max, total);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    top_k_kernel(const __grid_constant__ TopKParams params) {
  __shared__ uint64_t places[kMaxTopK];  // (key, inverted id): descending is the order wanted
  __shared__ int32_t count;
  const LogitRow<T> row(params.logits, params.vocab_size);
  const uint64_t total = full_total(row);
  SampleCut cut{0, row.size - 1};
  if (params.k < row.size) cut = select(row, params.k, [](int32_t) { return uint64_t{1}; });
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for (int32_t id = threadIdx.x; id < row.size; id += kThreads) {
    const uint32_t key = row.key(id);
    if (cut.allows(key, id))
      places[atomicAdd(&count, 1)] = static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(id);
  }
  __syncthreads();
  const int32_t i = threadIdx.x;
  if (i >= params.k) return;
  const int64_t out = static_cast<int64_t>(blockIdx.x) * params.k;
  if (i >= count) {  // fewer ids than k
    params.ids[out + i] = -1;
    params.log_probs[out + i] = minus_infinity();
    return;
  }
  int32_t rank = 0;
  for (int32_t j = 0; j < count; ++j) rank += places[j] > places[i];
  const int32_t id = static_cast<int32_t>(~static_cast<uint32_t>(places[i]));
  params.ids[out + rank] = id;
  params.log_probs[out + rank] = log_probability(row.logit(id), row.max, total);
}

}  // namespace

cudaError_t top_k(const TopKParams& params, cudaStream_t stream) {
  if (params.rows == 0 || params.vocab_size == 0) return cudaSuccess;
  if (params.k < 1 || params.k > kMaxTopK) return cudaErrorInvalidValue;
  return with_storage(params.dtype, [&](auto type) {
    top_k_kernel<decltype(type)><<<params.rows, kThreads, 0, stream>>>(params);
    return cudaPeekAtLastError();
  });
}

cudaError_t sample(const SampleParams& params, cudaStream_t stream) {
  if (params.rows == 0 || params.vocab_size == 0) return cudaSuccess;
  return with_storage(params.dtype, [&](auto type) {
    sample_kernel<decltype(type)><<<params.rows, kThreads, 0, stream>>>(params);
    return cudaPeekAtLastError();
  });
}

}  // namespace flash_gqa::cuda
