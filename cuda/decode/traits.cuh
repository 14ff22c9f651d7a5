// What the kernel of one (dtype, head_dim) keeps in shared memory, on cards with a copy engine and on
// older ones.
#pragma once

#include "../tile/barrier.cuh"
#include "../tile/mma.cuh"
#include "decode_args.h"
#include "merge.cuh"

namespace flash_gqa::cuda::decode {

// kTma: the copy engine fills the ring (sm_90 and later), else cp.async.
template <class ElementType, int kDim, bool kCopyEngine>
struct Traits {
  using Element = ElementType;
  static constexpr int kHeadDim = kDim;
  static constexpr bool kTma = kCopyEngine;
  using Math = MmaMath<Element, kHeadDim, 1, 1, 1, kSlabKeys>;
  using Tile = std::conditional_t<kTma, TmaTile<Element, kSlabKeys, kHeadDim>,
                                  SwizzledTile<Element, kSlabKeys, kHeadDim>>;
  // 96 KB in flight for each block, which two blocks of a multiprocessor have room for; 192 KB, and
  // one block, where two stages are the least.
  static constexpr int kStages =
      (kHeadDim == 256 ? 192 : 96) * 1024 / (2 * kWarps * static_cast<int>(sizeof(Tile)));
  static constexpr int kBlocksPerSm = kHeadDim == 256 ? 1 : 2;
};

template <class T>
struct Slab {
  typename T::Tile k;  // [kSlabKeys, kHeadDim]
  typename T::Tile v;  // [kSlabKeys, kHeadDim]
};

template <class T>
struct SharedStorage {
  SwizzledTile<typename T::Element, T::kTma ? kRowsPerTile : 1, T::kHeadDim> queries;
  SoftmaxState state[kWarps][kRowsPerTile];
  Barrier full[kWarps][kMaxStages];  // slabs that the copy engine has filled
  uint32_t bad[kWarps][kMaxStages];  // keys of a slab whose page id is invalid, one bit each
  // The pair that this block begins with, the one that it ends with, and the one at hand.
  SharedPair pairs[3];
  // Of what is read before the launches in front are done:
  int32_t ignored_fault;       // in lengths, reported once they are confirmed
  int32_t ignored_page_fault;  // in page ids, which are looked at again
  Slab<T> ring[kWarps * T::kStages];  // fewer stages where memory is short

  static constexpr size_t bytes(int stages) {
    return sizeof(SharedStorage) - kWarps * (T::kStages - stages) * sizeof(Slab<T>);
  }
};

}  // namespace flash_gqa::cuda::decode
