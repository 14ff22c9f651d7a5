// What the kernel of one (dtype, head_dim) keeps in shared memory, on cards with a copy engine and on
// older ones.
#pragma once

#include "../tile/barrier.cuh"
#include "../tile/mma.cuh"
#include "../tile/mma_columns.cuh"
#include "decode_args.h"
#include "division.cuh"
#include "merge.cuh"

namespace flash_gqa::cuda::decode {

// Who fills the rings.
enum class Filler {
  kBoxes,       // the copy engine (sm_90 and later), a slab at a time
  kSmallPages,  // cp.async into the same rings, row by row, where a slab may lie in several pages
  kOlderCards,  // cp.async alone
};

// Tiles of 8, 16 or 32 rows. 32 are two groups, each with its own warp for every ring, so that keys are read
// once for both.
template <class ElementType, int kDim, int kTileRows, Filler kFiller>
struct Traits {
  using Element = ElementType;
  static constexpr int kHeadDim = kDim;
  static constexpr int kRows = kTileRows;
  static constexpr int kRowGroups = kRows > 16 ? kRows / 16 : 1;
  static constexpr int kWarpRows = kRows / kRowGroups;
  static constexpr int kThreads = 32 * kKeyWarps * kRowGroups;
  // The copy engine's rings and tiles, whoever fills them.
  static constexpr bool kTma = kFiller != Filler::kOlderCards;
  static constexpr bool kSmallPages = kFiller == Filler::kSmallPages;
  // Two blocks of 256 threads have 128 registers a thread.
  static constexpr bool kQueriesInRegisters = kRowGroups == 1;
  using Math = std::conditional_t<kRows == 8, MmaColumns<Element, kHeadDim>,
                                  MmaMath<Element, kHeadDim, kRowGroups, 1, 1, kSlabKeys>>;
  using Tile = std::conditional_t<kTma, TmaTile<Element, kSlabKeys, kHeadDim>,
                                  SwizzledTile<Element, kSlabKeys, kHeadDim>>;
  // Two blocks share a multiprocessor, and no third, whose place blocks of the next launch would take
  // unevenly; one, where two stages are the least, or registers.
  static constexpr int kBlocksPerSm = kHeadDim == 256 || kHeadDim * kRowGroups > 256 ? 1 : 2;
  static constexpr size_t kLeastSmem = kBlocksPerSm == 2 ? 78 * 1024 : 0;
  static constexpr int stages_of(int kilobytes) {
    return kilobytes * 1024 / (2 * kKeyWarps * static_cast<int>(sizeof(Tile)));
  }
  // More than 64 KB in flight bring nothing.
  static constexpr int kStages = stages_of(kTma && kHeadDim <= 128 ? 64 : 192 / kBlocksPerSm);
  // Whether a block may play the parts of two teams, which it does well where the keys of its next piece are
  // asked for while it works on this one. Its parts then need a place of their own, for which two blocks must
  // have room. Small pages are not asked for ahead, but divided as others are.
  static constexpr bool kPlaysTwo = kTma && kRowGroups == 1 && kHeadDim <= 128;
  static constexpr bool kFollows = kPlaysTwo && !kSmallPages;
  static_assert(kRows == 16 || kTma);
};

template <class T>
struct Slab {
  typename T::Tile k;  // [kSlabKeys, kHeadDim]
  typename T::Tile v;  // [kSlabKeys, kHeadDim]
};

// What a warp leaves of its rows for the block to merge. 32-byte units are permuted by the row, so that neither
// side meets bank conflicts (of 8 rows, those that are stored together meet in pairs).
template <class T>
struct WarpPart {
  static constexpr int kPermuted = T::kHeadDim % 64 == 0 ? 8 : 4;

  alignas(16) float data[T::kWarpRows * T::kHeadDim];

  __device__ __forceinline__ float* at(int r, int col) {
    return data + r * T::kHeadDim + (col / 8 ^ r % kPermuted) * 8 + col % 8;
  }
};

// The rows of one pair that a block works on: rows first_row .. first_row + rows - 1.
struct RowTile {
  int32_t kv_head;
  int32_t first_row;
  int32_t rows;  // not positive: a shorter sequence has none of them

  __device__ RowTile of(const Pair& pair, int32_t most) const {
    return {kv_head, first_row, min_i32(most, pair.rows - first_row)};
  }
};

// Where a block is. It stays in shared memory, because meanwhile its registers are the products'.
struct Progress {
  RowTile rows;
  int32_t x;     // of the column of rows
  int32_t slot;  // of the piece
  int32_t num_pending;
  bool asked;    // for its queries, and perhaps its first keys, while it was the next one
  bool follows;  // the next one: it is asked for while this one is worked on
};

// Whether a block that is done stays until all have let the next launch in (linger.cuh).
enum Linger : int32_t { kNoLingering, kWillCount, kCounted };

template <class T>
struct SharedStorage {
  // Of the piece at hand, and, where it is asked for ahead, of the next one.
  SwizzledTile<typename T::Element, T::kTma ? T::kRows : 1, T::kHeadDim>
      queries[T::kFollows ? 2 : 1];
  SoftmaxState state[kKeyWarps][T::kRows];
  Barrier full[kKeyWarps][kMaxStages];  // slabs that the copy engine has filled
  uint32_t bad[kKeyWarps][kMaxStages];  // keys of a slab whose page id is invalid, one bit each
  // The pair that each of the block's teams begins with, the one that it ends with, and the one at hand.
  SharedPair pairs[2 * kMostTeamsPerBlock + 1];
  Lengths seen[T::kTma ? kMostGuessed : 1];  // written by a thread for each sequence
  bool knows_lengths;                        // seen[] is right, or still a guess
  Division division;                         // what is behind the pieces below
  Piece pieces[2];                           // the one at hand, and the next one
  bool has_piece[2];
  Progress progress;
  Linger lingering;
  // Of what is read before the launches in front are done:
  int32_t ignored_fault;       // in lengths, reported once they are confirmed
  int32_t ignored_page_fault;  // in page ids, which are looked at again
  std::conditional_t<T::kFollows, WarpPart<T>[kKeyWarps], char> parts;
  Slab<T> ring[kKeyWarps * T::kStages];  // fewer stages where memory is short

  static constexpr size_t bytes(int stages) {
    const size_t needed =
        sizeof(SharedStorage) - kKeyWarps * (T::kStages - stages) * sizeof(Slab<T>);
    return needed > T::kLeastSmem ? needed : T::kLeastSmem;
  }
};

}  // namespace flash_gqa::cuda::decode
