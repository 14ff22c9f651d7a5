#include <algorithm>
#include <cstring>

#include "copy_rows.cuh"
#include "launch.h"
#include "mask.h"

namespace flash_gqa::cuda {
namespace {

struct RepeatedHead {
  int64_t x_stride_token;  // units
  int32_t num_q_heads;
  int32_t group_size;
  int32_t head_units;
  __device__ int64_t operator()(int64_t row) const {
    return row / num_q_heads * x_stride_token + row % num_q_heads / group_size * head_units;
  }
};

struct VisibleKey {
  KeyRange keys;
  int64_t x_stride_token;  // units
  __device__ int64_t operator()(int64_t row) const {
    return keys.key(static_cast<int32_t>(row)) * x_stride_token;
  }
};

// Host arrays travel by value in the launch, so nothing has to be staged or kept.
constexpr int kPairsPerLaunch = kMostInlineBytes / sizeof(int2);
struct Pairs {
  int32_t count;
  int2 at[kPairsPerLaunch];
};

// Calls launch(pairs) for the host array [num_pairs, 2], at most kPairsPerLaunch at a time.
template <class Launch>
cudaError_t for_pairs(const int32_t* host, int32_t num_pairs, const Launch& launch) {
  for (int32_t first = 0; first < num_pairs; first += kPairsPerLaunch) {
    Pairs pairs;
    pairs.count = std::min(kPairsPerLaunch, num_pairs - first);
    for (int32_t i = 0; i < pairs.count; ++i)
      pairs.at[i] = make_int2(host[2 * (first + i)], host[2 * (first + i) + 1]);
    launch(pairs);
    if (const cudaError_t error = cudaPeekAtLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

__global__ void scatter_kernel(int32_t* dst, const __grid_constant__ Pairs pairs) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs.count) return;
  const int2 pair = pairs.at[i];
  // Of two writes to one word the later one stays, as if they were made in order.
  for (int later = 0; later < pairs.count; ++later)
    if (later > i && pairs.at[later].x == pair.x) return;
  dst[pair.x] = pair.y;
}

struct InlineBytes {
  uint32_t count;
  uint8_t at[kMostInlineBytes];
};

__global__ void store_kernel(uint8_t* dst, const __grid_constant__ InlineBytes bytes) {
  for (uint32_t i = threadIdx.x; i < bytes.count; i += blockDim.x) dst[i] = bytes.at[i];
}

// Block (part, pair, layer): page_units units of one page, page pairs.x -> pairs.y.
template <class Unit>
__global__ void copy_pages_kernel(Unit* pool, int64_t page_units, int64_t num_pages,
                                  const __grid_constant__ Pairs pairs) {
  const int2 pair = pairs.at[blockIdx.y];
  Unit* layer = pool + blockIdx.z * num_pages * page_units;
  const Unit* src = layer + pair.x * page_units;
  Unit* dst = layer + pair.y * page_units;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < page_units;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    dst[i] = src[i];
}

}  // namespace

cudaError_t repeat_kv(const RepeatKvParams& params, cudaStream_t stream) {
  const int32_t num_q_heads = params.num_kv_heads * params.group_size;
  const auto source = [&](int per_unit) {
    return RepeatedHead{params.x_stride_token / per_unit, num_q_heads, params.group_size,
                        params.head_dim / per_unit};
  };
  return copy_rows(params.out, params.x, static_cast<int64_t>(params.rows) * num_q_heads,
                   params.head_dim, params.dtype, params.x_stride_token, source, stream);
}

cudaError_t slice_window(const SliceWindowParams& params, cudaStream_t stream) {
  const Mask mask{1, params.kv_len, 1, params.window, params.sink_tokens, 0};
  const auto source = [&](int per_unit) {
    return VisibleKey{mask.row(0), params.x_stride_token / per_unit};
  };
  return copy_rows(params.out, params.x, params.out_len, params.row_elements, params.dtype,
                   params.x_stride_token, source, stream);
}

cudaError_t copy_pages(const CopyPagesParams& params, cudaStream_t stream) {
  if (params.num_layers == 0) return cudaSuccess;
  const auto copy = [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t page_units = params.page_bytes / static_cast<int64_t>(sizeof(Unit));
    const int64_t parts = std::min<int64_t>((page_units + 1023) / 1024, 64);
    return for_pairs(params.src_dst, params.num_pairs, [&](const Pairs& pairs) {
      const dim3 grid(static_cast<unsigned>(parts), pairs.count, params.num_layers);
      copy_pages_kernel<<<grid, 256, 0, stream>>>(static_cast<Unit*>(params.pool), page_units,
                                                  params.num_pages, pairs);
    });
  };
  Alignment<uint8_t> alignment;
  if (alignment.pointer(params.pool).elements(params.page_bytes).vector()) return copy(uint4{});
  return copy(uint16_t{});
}

cudaError_t scatter(const ScatterParams& params, cudaStream_t stream) {
  return for_pairs(params.pairs, params.num_pairs, [&](const Pairs& pairs) {
    scatter_kernel<<<(pairs.count + 127) / 128, 128, 0, stream>>>(params.dst, pairs);
  });
}

cudaError_t store(void* dst, const void* host, size_t bytes, cudaStream_t stream) {
  if (bytes > kMostInlineBytes) return cudaErrorInvalidValue;
  InlineBytes values;
  values.count = static_cast<uint32_t>(bytes);
  std::memcpy(values.at, host, values.count);
  store_kernel<<<1, 256, 0, stream>>>(static_cast<uint8_t*>(dst), values);
  return cudaPeekAtLastError();
}

}  // namespace flash_gqa::cuda
