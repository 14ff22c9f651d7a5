// K and V tiles on their way from memory to shared memory: two steps ahead the key rows are looked
// up, one step ahead their bytes start to move (cp.async), now they are used.
//
//   step i:   wait(tile i) · barrier · issue(tile i + stages - 1) · resolve(tile i + stages)
//
// The one barrier per tile closes three hazards: tile i is visible to all; the stage that issue()
// overwrites was read in step i - 1; the looked-up rows that issue() reads were written in step
// i - 1, and those that resolve() overwrites were read there.
#pragma once

#include "../kv_source.h"
#include "../tile/ptx.cuh"
#include "../tile/smem.cuh"
#include "../work.cuh"

namespace flash_gqa::cuda {

template <class T>
struct KvTiles {
  using Tile = SwizzledTile<typename T::Element, T::kTileKv, T::kHeadDim>;
  Tile k[T::kStages];  // [kTileKv, kHeadDim]
  Tile v[T::kStages];  // [kTileKv, kHeadDim]
};

// Looked-up rows of the tiles to come, which of them are to be copied, and which keys of each tile in
// flight had an invalid page.
template <class T>
struct KeyRows {
  static constexpr int kWords = (T::kTileKv + 31) / 32;
  static_assert(T::kTileKv <= 64);
  static constexpr int kBadSlots = T::kStages + 1;
  alignas(16) KeyRow rows[2][T::kTileKv];
  uint32_t valid[2][kWords];
  uint32_t bad[kBadSlots][kWords];
};

template <class T>
struct KvPipeline {
  using Element = typename T::Element;
  using Tile = typename KvTiles<T>::Tile;
  static constexpr int kThreads = T::Math::kThreads;

  const AttentionParams& params;
  const Work& work;
  KvTiles<T>& tiles;
  KeyRows<T>& keys;

  __device__ const Tile& k(int32_t i) const { return tiles.k[i % T::kStages]; }
  __device__ const Tile& v(int32_t i) const { return tiles.v[i % T::kStages]; }

  __device__ void start() {
    resolve(0);
    for (int32_t i = 0; i < T::kStages - 1; ++i) {
      __syncthreads();
      issue(i);
      resolve(i + 1);
    }
  }

  // Returns when tile i may be read.
  __device__ void advance(int32_t i) {
    ptx::cp_async_wait<T::kStages - 2>();
    __syncthreads();
    issue(i + T::kStages - 1);
    resolve(i + T::kStages);
  }

  // Keys of the tile that must be masked whatever the row: bit j is its j-th key.
  __device__ uint64_t bad_keys(int32_t i) const {
    uint64_t bad = 0;
#pragma unroll
    for (int word = 0; word < KeyRows<T>::kWords; ++word)
      bad |= static_cast<uint64_t>(keys.bad[i % KeyRows<T>::kBadSlots][word]) << (32 * word);
    return bad;
  }

 private:
  // One key per thread: where its rows are, and whether any row of the tile sees it.
  __device__ void resolve(int32_t i) {
    const int32_t at = threadIdx.x;
    if (i >= work.num_tiles || at >= KeyRows<T>::kWords * 32) return;
    const int32_t key = work.first_key(i) + at;
    const bool visible = at < T::kTileKv && work.visible.contains(key);
    KeyRow row{-1, -1};
    if (visible) row = work.source.row(key);
    const bool valid = visible && row.k >= 0;
    if (at < T::kTileKv) keys.rows[i % 2][at] = valid ? row : KeyRow{0, 0};
    const uint32_t valid_keys = __ballot_sync(0xffffffffu, valid);
    const uint32_t bad_keys = __ballot_sync(0xffffffffu, visible && !valid);
    if (at % 32 == 0) {
      keys.valid[i % 2][at / 32] = valid_keys;
      keys.bad[i % KeyRows<T>::kBadSlots][at / 32] = bad_keys;
    }
  }

  // Rows that nothing sees, and columns beyond head_dim, arrive as zeros: a masked probability of 0
  // times a NaN left in a page would still be NaN. A row is copied by kRowThreads neighbours.
  __device__ void issue(int32_t i) {
    if (i < work.num_tiles) {
      constexpr int kRowThreads = Tile::kPermuted;
      constexpr int kPassRows = kThreads / kRowThreads;
      static_assert(T::kTileKv % kPassRows == 0 && kPassRows % 8 == 0);
      const auto* k = static_cast<const Element*>(params.kv.k);
      const auto* v =
          params.kv.page_table != nullptr ? k : static_cast<const Element*>(params.kv.v);
      const int first_row = threadIdx.x / kRowThreads;
      const int first_chunk = threadIdx.x % kRowThreads;
      const uint32_t k_to = tiles.k[i % T::kStages].address(first_row, first_chunk);
      const uint32_t v_to = tiles.v[i % T::kStages].address(first_row, first_chunk);
#pragma unroll
      for (int rows = 0; rows < T::kTileKv; rows += kPassRows) {
        const int at = first_row + rows;
        const KeyRow row = keys.rows[i % 2][at];
        const bool row_valid = keys.valid[i % 2][at / 32] >> at % 32 & 1;
        const Element* k_from = k + row.k + first_chunk * Tile::kChunk;
        const Element* v_from = v + row.v + first_chunk * Tile::kChunk;
#pragma unroll
        for (int chunks = 0; chunks < Tile::kChunks; chunks += kRowThreads) {
          // Where nothing is to be read, the address may be beyond the row.
          const bool valid = row_valid && (first_chunk + chunks) * Tile::kChunk < params.head_dim;
          ptx::cp_async_16(Tile::move(k_to, rows, chunks), k_from + chunks * Tile::kChunk, valid);
          ptx::cp_async_16(Tile::move(v_to, rows, chunks), v_from + chunks * Tile::kChunk, valid);
        }
      }
    }
    ptx::cp_async_commit();  // also where empty, so that the wait counts tiles
  }
};

}  // namespace flash_gqa::cuda
