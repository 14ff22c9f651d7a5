// top_k and sample. The arithmetic that back ends must agree on is in sampling.h.
#include <algorithm>

#include "../dependent_launch.cuh"
#include "../launch.h"
#include "logit_row.cuh"

namespace flash_gqa::cuda {
namespace {

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
  __device__ void set(uint32_t bin, uint64_t value) {
    low[bin] = static_cast<uint32_t>(value);
    high[bin] = static_cast<uint32_t>(value >> 32);
  }

  // Turns each block's sums into those of the team.
  __device__ void combine(RowTeam& team) {
    if (team.blocks == 1) return;
    uint64_t* all = team.workspace->histograms[team.histograms++];
    for (int bin = threadIdx.x; bin < kDigitBins; bin += kThreads) {
      const uint64_t mine = sum(bin);
      if (mine != 0) atomicAdd(reinterpret_cast<unsigned long long*>(all + bin), mine);
    }
    team.barrier();
    for (int bin = threadIdx.x; bin < kDigitBins; bin += kThreads) set(bin, __ldcg(all + bin));
    __syncthreads();
  }
};

struct Digit {
  uint32_t value;
  uint64_t target;  // what is left to reach inside its bin
  uint64_t total;   // the bin's sum
};

// The bin, from the highest, in which the running sum reaches `target`, as the sum of all does.
// Warps sum 64 bins each; then every warp finds the same group of 64, and in it the bin.
__device__ Digit find_digit(const Histogram& histogram, uint64_t target) {
  static_assert(kDigitBins == 2 * kThreads);
  __shared__ uint64_t groups[kWarps];
  const int lane = threadIdx.x % 32;
  uint64_t pair = histogram.sum(2 * threadIdx.x) + histogram.sum(2 * threadIdx.x + 1);
  for (int distance = 16; distance > 0; distance /= 2)
    pair += __shfl_xor_sync(kAllLanes, pair, distance);
  if (lane == 0) groups[threadIdx.x / 32] = pair;
  __syncthreads();

  const uint64_t group = groups[kWarps - 1 - lane];
  uint64_t running = scan_warp(group);
  int holder = __ffs(__ballot_sync(kAllLanes, running >= target)) - 1;
  target -= __shfl_sync(kAllLanes, running - group, holder);

  const int top = 64 * (kWarps - 1 - holder) + 63 - 2 * lane;
  const uint64_t upper = histogram.sum(top);
  const uint64_t lower = histogram.sum(top - 1);
  running = scan_warp(upper + lower);
  holder = __ffs(__ballot_sync(kAllLanes, running >= target)) - 1;
  target -= __shfl_sync(kAllLanes, running - upper - lower, holder);
  const uint64_t holder_upper = __shfl_sync(kAllLanes, upper, holder);
  const uint32_t bin = __shfl_sync(kAllLanes, top, holder);
  if (holder_upper >= target) return {bin, target, holder_upper};
  return {bin - 1, target - holder_upper, __shfl_sync(kAllLanes, lower, holder)};
}

// The smallest set of ids, largest logit first, whose measures sum to at least `target`, which the
// sum of all must reach. Ids of equal logits have equal measures, or 0.
template <class T, class Measure>
__device__ SampleCut select(LogitRow<T>& row, uint64_t target, Measure measure) {
  __shared__ Histogram histogram;
  Digit digit{};
  uint32_t prefix = 0;
  for (int shift = kFirstDigit; shift >= 0; shift -= kDigitBits) {
    histogram.clear();
    __syncthreads();
    row.for_each([&](int32_t id, float logit) {
      const uint32_t key = order_key(logit);
      if (!matches_prefix(key, prefix, shift)) return;
      const uint64_t value = measure(id, logit);
      if (value != 0) histogram.add(digit_of(key, shift), value);
    });
    __syncthreads();
    histogram.combine(row.team);
    digit = find_digit(histogram, target);
    __syncthreads();  // the histogram may be written again
    prefix |= digit.value << shift;
    target = digit.target;
  }
  const auto tied = [&](int32_t id, float logit) {
    return static_cast<uint64_t>(order_key(logit) == prefix && measure(id, logit) != 0);
  };
  const uint64_t ties = row.total(tied);
  const uint64_t each = digit.total / ties;
  const uint64_t needed = (target + each - 1) / each;
  return {prefix, row.find_running(needed - 1, tied)};
}

__device__ uint64_t count_one(int32_t, float) { return 1; }

template <class T>
__device__ int32_t draw(LogitRow<T>& row, const SampleParams& params, int32_t r) {
  const float temperature = params.temperature[r];
  if (!(temperature > 0.0f) || row.max == minus_infinity()) return row.best;
  SampleCut cut{0, row.size - 1};
  const auto weight = [&](int32_t id, float logit) -> uint64_t {
    return cut.allows(order_key(logit), id) ? sampling_weight(logit, row.max, temperature) : 0;
  };
  const int32_t top_k = params.top_k[r];
  if (top_k > 0 && top_k < row.size) cut = select(row, top_k, count_one);
  uint64_t total = row.total(weight);
  const float top_p = params.top_p[r];
  if (top_p < 1.0f) {
    cut = select(row, top_p_target(total, top_p), weight);
    total = row.total(weight);
  }
  const uint64_t drawn =
      draw_below(total, params.seed[2 * r], params.seed[2 * r + 1], params.counter[r]);
  return row.find_running(drawn, weight);
}

template <class T>
__device__ uint64_t full_total(LogitRow<T>& row) {
  return row.total([&](int32_t, float logit) { return sampling_weight(logit, row.max, 1.0f); });
}

// Block (rank, row).
template <class T>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ SampleParams params, TeamWorkspace* workspaces) {
  begin_dependent();
  const int32_t r = static_cast<int32_t>(blockIdx.y);
  const RowTeam team{workspaces + r, static_cast<int>(gridDim.x), static_cast<int>(blockIdx.x)};
  LogitRow<T> row(params.logits, r, params.vocab_size, team);
  const int32_t id = draw(row, params, r);
  const bool writes = blockIdx.x == 0 && threadIdx.x == 0;
  if (writes) params.ids[r] = id;
  if (params.log_probs == nullptr) return;
  const uint64_t total = full_total(row);
  if (writes) params.log_probs[r] = log_probability(row.logit(id), row.max, total);
}

// One block per row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    top_k_kernel(const __grid_constant__ TopKParams params) {
  begin_dependent();
  __shared__ uint64_t places[kMaxTopK];  // (key, inverted id): descending is the order wanted
  __shared__ int32_t count;
  LogitRow<T> row(params.logits, static_cast<int32_t>(blockIdx.x), params.vocab_size,
                  RowTeam{nullptr, 1, 0});
  const uint64_t total = full_total(row);
  SampleCut cut{0, row.size - 1};
  if (params.k < row.size) cut = select(row, params.k, count_one);
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  row.for_each([&](int32_t id, float logit) {
    const uint32_t key = order_key(logit);
    if (cut.allows(key, id))
      places[atomicAdd(&count, 1)] = static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(id);
  });
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

// Blocks per row: as many as are surely resident together, and have enough to do.
int team_size(const SampleParams& params, int num_sms) {
  constexpr int32_t kLogitsPerBlock = 4096;
  int blocks = 1;
  while (2 * blocks <= kMaxTeam && 2 * blocks * params.rows <= num_sms &&
         blocks * kLogitsPerBlock < params.vocab_size)
    blocks *= 2;
  return blocks;
}

}  // namespace

cudaError_t top_k(const TopKParams& params, cudaStream_t stream) {
  if (params.rows == 0 || params.vocab_size == 0) return cudaSuccess;
  if (params.k < 1 || params.k > kMaxTopK) return cudaErrorInvalidValue;
  return with_storage(params.dtype, [&](auto type) {
    return launch_dependent(top_k_kernel<decltype(type)>, params.rows, kThreads, 0, stream, params);
  });
}

size_t sample_workspace(const SampleParams& params, int num_sms) {
  return team_size(params, num_sms) > 1 ? params.rows * sizeof(TeamWorkspace) : 0;
}

cudaError_t sample(const SampleParams& params, void* workspace, int num_sms, cudaStream_t stream) {
  if (params.rows == 0 || params.vocab_size == 0) return cudaSuccess;
  const int blocks = team_size(params, num_sms);
  if (blocks > 1) {
    const cudaError_t error =
        cudaMemsetAsync(workspace, 0, params.rows * sizeof(TeamWorkspace), stream);
    if (error != cudaSuccess) return error;
  }
  return with_storage(params.dtype, [&](auto type) {
    const dim3 grid(blocks, params.rows);
    TeamWorkspace* workspaces = static_cast<TeamWorkspace*>(workspace);
    const auto kernel = sample_kernel<decltype(type)>;
    if (blocks == 1) return launch_dependent(kernel, grid, kThreads, 0, stream, params, workspaces);
    // Cooperative, because blocks wait for each other: they are resident at once, or it fails.
    SampleParams by_value = params;
    void* arguments[] = {&by_value, &workspaces};
    return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, dim3(kThreads),
                                       arguments, 0, stream);
  });
}

}  // namespace flash_gqa::cuda
