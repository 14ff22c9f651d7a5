#include "../copy_rows.cuh"
#include "../kv_source.h"
#include "../launch.h"

namespace flash_gqa::cuda {
namespace {

// Rows chosen by indices on the device, which are not trusted.
struct IndexedRow {
  const int32_t* index;
  int32_t count;
  int32_t* fault;
  int64_t stride;  // units
  __device__ int64_t operator()(int64_t row) const {
    const int32_t i = index[row];
    if (i >= 0 && i < count) return i * stride;
    set_fault(fault, kFaultTokenId);
    return -1;
  }
};

}  // namespace

cudaError_t embedding(const EmbeddingParams& params, cudaStream_t stream) {
  const auto source = [&](int per_unit) {
    return IndexedRow{params.ids, params.vocab_size, params.fault, params.width / per_unit};
  };
  return copy_rows(params.out, params.table, params.rows, params.width, params.dtype, params.width,
                   source, stream);
}

cudaError_t gather_rows(const GatherRowsParams& params, cudaStream_t stream) {
  const auto source = [&](int per_unit) {
    return IndexedRow{params.index, params.num_rows, params.fault, params.x_stride_row / per_unit};
  };
  return copy_rows(params.out, params.x, params.out_rows, params.width, params.dtype,
                   params.x_stride_row, source, stream);
}

}  // namespace flash_gqa::cuda
