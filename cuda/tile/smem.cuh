// Tiles of rows in shared memory, in 16-byte chunks, such that both the copies (a row at a time) and
// the fragment loads (the same chunk of 8 rows) are free of bank conflicts.
#pragma once

#include <cstdint>

#include "ptx.cuh"

namespace flash_gqa::cuda {

// By permuting the chunks of each row.
template <class Element, int kRows, int kCols>
struct SwizzledTile {
  static constexpr int kChunk = 16 / sizeof(Element);  // elements
  static constexpr int kChunks = kCols / kChunk;       // per row
  static constexpr int kRowBytes = kCols * static_cast<int>(sizeof(Element));
  static_assert(kCols % kChunk == 0 && kChunks % 4 == 0);

  alignas(128) Element data[kRows * kCols];

  // 8 rows of one chunk must fall into 8 different 16-byte columns of the 128 bytes that the banks
  // span. Rows of whole 128-byte lines: permute 8 chunks by the row. Rows of an odd number of
  // 64-byte halves (head_dim 96): neighbours alternate halves, so permute 4 chunks by row / 2.
  static constexpr int kPermuted = kChunks % 8 == 0 ? 8 : 4;

  __device__ static int offset(int row, int chunk) {  // in bytes
    const int by = kPermuted == 8 ? row % 8 : row / 2 % 4;
    return row * kRowBytes + chunk / kPermuted * kPermuted * 16 + (chunk % kPermuted ^ by) * 16;
  }
  __device__ const Element* at(int row, int chunk) const {
    return data + offset(row, chunk) / static_cast<int>(sizeof(Element));
  }
  __device__ uint32_t address(int row, int chunk) const {
    return ptx::smem_address(data) + offset(row, chunk);
  }

  // Neighbours of an address at the cost of an immediate or one xor, instead of a register each.
  // `rows` is a multiple of 8; `chunks` has no bit in common with the chunk of `address`.
  __device__ static uint32_t move(uint32_t address, int rows, int chunks) {
    return (address ^ chunks % kPermuted * 16) + rows * kRowBytes +
           chunks / kPermuted * kPermuted * 16;
  }
};

// As the copy engine writes it with its 128-byte swizzle: column halves of 64 16-bit values, rows of
// 128 bytes, 16-byte chunks permuted by the row.
template <class Element, int kTileRows, int kHeadDim>
struct TmaTile {
  static constexpr int kRows = kTileRows;
  static constexpr int kHalves = (kHeadDim + 63) / 64;
  static constexpr uint32_t kBytes = kHalves * kRows * 128;

  alignas(1024) Element data[kHalves][kRows][64];

  __device__ uint32_t address(int row, int chunk) const {
    return ptx::smem_address(data) + chunk / 8 * kRows * 128 + row * 128 +
           (chunk % 8 ^ row % 8) * 16;
  }
  // Zeros in rows [first, kRows); by 128 threads.
  __device__ __forceinline__ void clear_from(int first, int thread) {
    for (int half = 0; half < kHalves; ++half) {
      uint4* rows = reinterpret_cast<uint4*>(&data[half][first][0]);
      for (int i = thread; i < (kRows - first) * 8; i += 128) rows[i] = uint4{0, 0, 0, 0};
    }
  }
  // As SwizzledTile::move().
  __device__ static uint32_t move(uint32_t address, int rows, int chunks) {
    return (address ^ chunks % 8 * 16) + rows * 128 + chunks / 8 * kRows * 128;
  }
};

}  // namespace flash_gqa::cuda
