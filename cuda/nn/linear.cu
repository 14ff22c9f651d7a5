// One plain matrix product, out = x * weight^T: tensor cores for 16-bit types, FFMA for float32.
// It stands in where cuBLASLt is missing, so it aims at being right for every shape.
#include "../launch.h"
#include "../tile/smem.cuh"
#include "../vector.cuh"

namespace flash_gqa::cuda {
namespace {

constexpr int kTile = 64;  // rows of x, and output features
constexpr int kThreads = 128;

// Four warps, each 32 x 32 of the result.
template <class T, class Element>
struct MmaProduct {
  using Tile = SwizzledTile<T, kTile, 64>;
  float sum[2][4][4] = {};
  const int lane = threadIdx.x % 32;
  const int first_row = threadIdx.x / 64 * 32;
  const int first_col = threadIdx.x / 32 % 2 * 32;

  __device__ void add(const Tile& x, const Tile& weight) {
#pragma unroll
    for (int chunk = 0; chunk < Tile::kChunks; chunk += 2) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::ldmatrix_x4(a[i], x.address(first_row + 16 * i + lane % 16, chunk + lane / 16));
        ptx::ldmatrix_x4(b[i], weight.address(first_col + 16 * i + lane / 16 * 8 + lane % 8,
                                              chunk + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float(&c)[4] = sum[i][j];
          ptx::mma_16x8x16<Element>(c[0], c[1], c[2], c[3], a[i], b[j / 2][j % 2 * 2],
                                    b[j / 2][j % 2 * 2 + 1]);
        }
    }
  }

  template <class Store>
  __device__ void store(const Store& put) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          put(first_row + 16 * i + c / 2 * 8 + lane / 4, first_col + 8 * j + lane % 4 * 2 + c % 2,
              sum[i][j][c]);
  }
};

// Each thread four rows, and every eighth of the columns.
struct FfmaProduct {
  using Tile = SwizzledTile<float, kTile, 32>;
  float sum[4][8] = {};
  const int first_row = threadIdx.x / 8 * 4;
  const int first_col = threadIdx.x % 8;

  __device__ void add(const Tile& x, const Tile& weight) {
#pragma unroll 2
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      Vector<float, 4> a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = load_vector<float, 4>(x.at(first_row + i, chunk));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const auto b = load_vector<float, 4>(weight.at(first_col + 8 * j, chunk));
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int d = 0; d < 4; ++d) sum[i][j] = fmaf(a[i].at[d], b.at[d], sum[i][j]);
      }
    }
  }

  template <class Store>
  __device__ void store(const Store& put) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) put(first_row + i, first_col + 8 * j, sum[i][j]);
  }
};

// Columns [first_col, ..) of rows [first_row, ..) of a matrix [rows, cols]; zeros outside it.
template <class Tile, class T>
__device__ void load_tile(Tile& tile, const T* matrix, int64_t stride, int32_t first_row,
                          int32_t rows, int32_t first_col, int32_t cols, bool aligned) {
  for (int i = threadIdx.x; i < kTile * Tile::kChunks; i += kThreads) {
    const int row = i / Tile::kChunks;
    const int chunk = i % Tile::kChunks;
    const int32_t col = first_col + chunk * Tile::kChunk;
    const bool inside = first_row + row < rows;
    const T* from = matrix + (inside ? first_row + row : 0) * stride + col;
    if (aligned) {
      ptx::cp_async_16(tile.address(row, chunk), from, inside && col < cols);
    } else {
      T* to = const_cast<T*>(tile.at(row, chunk));
      for (int d = 0; d < Tile::kChunk; ++d) to[d] = inside && col + d < cols ? from[d] : T{};
    }
  }
}

template <class Product, class T, class Out>
__global__ void __launch_bounds__(kThreads)
    linear_kernel(const __grid_constant__ LinearParams params, bool aligned) {
  __shared__ typename Product::Tile x_tile[2], weight_tile[2];
  constexpr int kDepth = Product::Tile::kChunks * Product::Tile::kChunk;
  const int32_t first_row = blockIdx.x * kTile;
  const int32_t first_col = blockIdx.y * kTile;
  const auto load = [&](int stage, int32_t d) {
    load_tile(x_tile[stage], static_cast<const T*>(params.x), params.x_stride_row, first_row,
              params.rows, d, params.in_features, aligned);
    load_tile(weight_tile[stage], static_cast<const T*>(params.weight), params.in_features,
              first_col, params.out_features, d, params.in_features, aligned);
    ptx::cp_async_commit();
  };

  Product product;
  load(0, 0);
  for (int32_t d = 0, stage = 0; d < params.in_features; d += kDepth, stage ^= 1) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // this stage has arrived, and the other one has been read
    if (d + kDepth < params.in_features) load(stage ^ 1, d + kDepth);
    product.add(x_tile[stage], weight_tile[stage]);
  }

  product.store([&](int row, int col, float value) {
    const int64_t r = first_row + row, c = first_col + col;
    if (r >= params.rows || c >= params.out_features) return;
    const int64_t at = r * params.out_features + c;
    if (params.bias != nullptr) value += to_float(static_cast<const T*>(params.bias)[c]);
    if (params.residual != nullptr) value += to_float(static_cast<const T*>(params.residual)[at]);
    static_cast<Out*>(params.out)[at] = from_float<Out>(value);
  });
}

template <class Product, class T, class Out>
cudaError_t launch(const LinearParams& params, cudaStream_t stream) {
  Alignment<T> alignment;
  alignment.pointer(params.x).pointer(params.weight);
  alignment.elements(params.x_stride_row).elements(params.in_features);
  const dim3 grid((params.rows + kTile - 1) / kTile, (params.out_features + kTile - 1) / kTile);
  linear_kernel<Product, T, Out><<<grid, kThreads, 0, stream>>>(params, alignment.vector());
  return cudaPeekAtLastError();
}

template <class T, class Element>
cudaError_t launch_16(const LinearParams& params, cudaStream_t stream) {
  if (params.out_dtype == DType::kFloat32)
    return launch<MmaProduct<T, Element>, T, float>(params, stream);
  return launch<MmaProduct<T, Element>, T, T>(params, stream);
}

}  // namespace

cudaError_t linear(const LinearParams& params, cudaStream_t stream) {
  if (params.rows == 0 || params.out_features == 0) return cudaSuccess;
  switch (params.dtype) {
    case DType::kFloat16:
      return launch_16<Float16, __half>(params, stream);
    case DType::kBFloat16:
      return launch_16<BFloat16, __nv_bfloat16>(params, stream);
    default:
      return launch<FfmaProduct, float, float>(params, stream);
  }
}

}  // namespace flash_gqa::cuda
