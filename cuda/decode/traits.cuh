// What the kernel of one (dtype, head_dim) keeps in shared memory, on cards with a copy engine and on
// older ones.
#pragma once

#include "../tile/barrier.cuh"
#include "../tile/mma.cuh"
#include "decode_args.h"
#include "division.cuh"
#include "merge.cuh"

namespace flash_gqa::cuda::decode {

// kTma: the copy engine fills the rings (sm_90 and later), else cp.async. kGroups: of 16 rows, each with
// its own warp for every ring, so that keys are read once for all of them.
template <class ElementType, int kDim, int kGroups, bool kCopyEngine>
struct Traits {
  using Element = ElementType;
  static constexpr int kHeadDim = kDim;
  static constexpr int kRowGroups = kGroups;
  static constexpr int kRows = kGroups * kWarpRows;
  static constexpr int kThreads = 32 * kKeyWarps * kGroups;
  static constexpr bool kTma = kCopyEngine;
  // Two blocks of 256 threads have 128 registers a thread.
  static constexpr bool kQueriesInRegisters = kGroups == 1;
  using Math = MmaMath<Element, kHeadDim, kGroups, 1, 1, kSlabKeys>;
  using Tile = std::conditional_t<kTma, TmaTile<Element, kSlabKeys, kHeadDim>,
                                  SwizzledTile<Element, kSlabKeys, kHeadDim>>;
  // Two blocks share a multiprocessor, and no third, whose place blocks of the next launch would take
  // unevenly; one, where two stages are the least, or registers.
  static constexpr int kBlocksPerSm = kHeadDim == 256 || kHeadDim * kGroups > 256 ? 1 : 2;
  static constexpr size_t kLeastSmem = kBlocksPerSm == 2 ? 78 * 1024 : 0;
  static constexpr int stages_of(int kilobytes) {
    return kilobytes * 1024 / (2 * kKeyWarps * static_cast<int>(sizeof(Tile)));
  }
  static constexpr int kStages = stages_of(192 / kBlocksPerSm);
  // More than 64 KB in flight bring nothing, but where two blocks read the same keys.
  static constexpr int kUsualStages = kTma && kHeadDim <= 128 ? stages_of(64) : kStages;
  static_assert(kGroups == 1 || kTma);
};

template <class T>
struct Slab {
  typename T::Tile k;  // [kSlabKeys, kHeadDim]
  typename T::Tile v;  // [kSlabKeys, kHeadDim]
};

// The rows of one pair that a block works on: rows first_row .. first_row + rows - 1.
struct RowTile {
  int32_t kv_head;
  int32_t first_row;
  int32_t rows;
};

// What a block has yet to do behind the pair at hand. It stays in shared memory, because meanwhile its
// registers are the products'.
struct Progress {
  Division division;  // its pair is the one at hand
  RowTile rows;
  int32_t left;  // units
  int32_t x;     // of the column of rows at hand
  int32_t num_pending;
  int32_t crosses;  // 1: other blocks have parts of the pair at hand
};

// Whether a block that is done stays until all have let the next launch in (linger.cuh).
enum Linger : int32_t { kNoLingering, kWillCount, kCounted };

template <class T>
struct SharedStorage {
  SwizzledTile<typename T::Element, T::kTma ? T::kRows : 1, T::kHeadDim> queries;
  SoftmaxState state[kKeyWarps][T::kRows];
  Barrier full[kKeyWarps][kMaxStages];  // slabs that the copy engine has filled
  uint32_t bad[kKeyWarps][kMaxStages];  // keys of a slab whose page id is invalid, one bit each
  // The pair that this block begins with, the one that it ends with, and the one at hand.
  SharedPair pairs[3];
  Lengths seen[T::kTma ? kMostGuessed : 1];  // written by a thread for each sequence
  Division division;                         // by the first warp, for the block
  Progress progress;
  Linger lingering;
  // Of what is read before the launches in front are done:
  int32_t ignored_fault;                 // in lengths, reported once they are confirmed
  int32_t ignored_page_fault;            // in page ids, which are looked at again
  Slab<T> ring[kKeyWarps * T::kStages];  // fewer stages where memory is short

  static constexpr size_t bytes(int stages) {
    const size_t needed =
        sizeof(SharedStorage) - kKeyWarps * (T::kStages - stages) * sizeof(Slab<T>);
    return needed > T::kLeastSmem ? needed : T::kLeastSmem;
  }
};

}  // namespace flash_gqa::cuda::decode
