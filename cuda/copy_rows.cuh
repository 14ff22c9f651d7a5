// Operations that move rows and never look inside them: one kernel, with a function that says where
// a row comes from.
#pragma once

#include "dependent_launch.cuh"
#include "vector.cuh"

namespace flash_gqa::cuda {

// out[r] = the row of `units` units at x + source(r), or zeros where source(r) < 0.
template <class Unit, class Source>
__global__ void copy_rows_kernel(Unit* out, const Unit* x, int64_t rows, int32_t units,
                                 Source source) {
  begin_dependent();
  const int64_t row = grid_row();
  if (row >= rows) return;
  const int64_t from = source(row);
  for (int32_t unit = threadIdx.x; unit < units; unit += blockDim.x)
    out[row * units + unit] = from < 0 ? Unit{} : x[from + unit];
}

// As above for rows of `width` elements whose offsets are multiples of `stride`: an access moves 16
// bytes where these allow it. make_source(per_unit) gives the function, offsets in units of so many
// elements.
template <class MakeSource>
cudaError_t copy_rows(void* out, const void* x, int64_t rows, int64_t width, DType dtype,
                      int64_t stride, const MakeSource& make_source, cudaStream_t stream) {
  if (rows == 0 || width == 0) return cudaSuccess;
  const auto launch = [&](auto type) {
    using T = decltype(type);
    Alignment<T> alignment;
    alignment.pointer(out).pointer(x).elements(width).elements(stride);
    return with_width(alignment, [&](auto per_unit) {
      using Unit = Vector<T, per_unit()>;
      const int32_t units = static_cast<int32_t>(width / per_unit());
      const RowGrid grid(rows, units);
      const auto rows_from = make_source(per_unit());
      using Source = std::remove_const_t<decltype(rows_from)>;
      return launch_dependent(copy_rows_kernel<Unit, Source>, grid.grid, grid.block, 0, stream, out,
                              x, rows, units, rows_from);
    });
  };
  // Only the size matters here, not what the bits mean.
  return dtype_bytes(dtype) == 2 ? launch(uint16_t{}) : launch(uint32_t{});
}

}  // namespace flash_gqa::cuda
