// Tile sizes of the Hopper decode kernel, its arguments, and the shared memory that follows from them.
#pragma once

#include "../epilogue.cuh"
#include "../tile/tma.cuh"
#include "decode_math.cuh"
#include "decode_schedule.cuh"

namespace flash_gqa::cuda::sm90 {

struct DecodeArgs {
  AttentionParams params;
  DecodeShape shape;
  int32_t box_keys;
  int32_t box_halves;           // column halves of one box: all of them, or 1 where head_dim ends inside a half
  int32_t part_rows;            // rows of a part in memory: the longest sequence's
  float* partial_o;             // [blocks, 2, part_rows, head_dim], unnormalised
  SoftmaxState* partial_state;  // [blocks, 2, part_rows]
  int32_t* counters;            // [blocks], zero between launches: parts of the pair that a block begins
};

// Tensor maps of K and V: [pages, num_kv_heads, column halves, keys of a page, 64], where dense K and V are one page of
// total_kv keys. Pages beyond the last arrive as zeros, and so do columns beyond head_dim.
struct DecodeMaps {
  CUtensorMap k;
  CUtensorMap v;
};

#ifndef DECODE_SMEM_KB
#define DECODE_SMEM_KB 227
#endif
#ifndef DECODE_PDL
#define DECODE_PDL 1
#endif
#ifdef DECODE_TRACE
__device__ long long g_trace[264][12];
#define TRACE(i) do { if (threadIdx.x == 0) g_trace[blockIdx.x][i] = clock64(); } while (0)
#else
#define TRACE(i)
#endif
#ifndef DECODE_GROUPS
#define DECODE_GROUPS 2
#endif

// kMaxRows: 8, 16, 32 or 64 query rows of a sequence and KV head.
template <class Element_, int kHeadDim_, int kMaxRows_>
struct DecodeTraits {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kMaxRows = kMaxRows_;
  static constexpr int kTileKv = 64;

  // A warp takes 8 or 16 rows, as its registers allow; further rows are other warps'. Where that leaves fewer than four
  // warps, they divide the keys of a tile. Up to 8 rows, two such groups take turns at the tiles.
  static constexpr int kWarpRows = kMaxRows == 8 || kHeadDim > 192 ? 8 : 16;
  static constexpr int kRowWarps = kMaxRows / kWarpRows;
  static constexpr int kKeyWarps = kRowWarps < 4 ? 4 / kRowWarps : 1;
  static constexpr int kGroups = kMaxRows == 8 && kHeadDim <= 128 ? DECODE_GROUPS : 1;
  using Math = DecodeMath<Element, kHeadDim, kWarpRows / 8, kRowWarps, kKeyWarps, kTileKv>;
  static constexpr int kParts = kGroups * kKeyWarps;  // softmax states of a row in a block

  static constexpr int kConsumerThreads = kGroups * Math::kThreads;
  static constexpr int kThreads = kConsumerThreads + 64;  // one producer warp each for K and V

  struct alignas(1024) KvTile {
    Element data[kTileKv * Math::kHalves * 64];
  };
  static constexpr uint32_t kTileBytes = sizeof(KvTile);

  // A segment's rows as the warps leave them. The padding spreads the rows of a fragment over the banks.
  struct WarpParts {
    alignas(16) float o[kParts][kMaxRows][kHeadDim + 4];
    SoftmaxState state[kParts][kMaxRows];
  };
  // A segment's rows as the other blocks of the cluster read them.
  struct BlockPart {
    alignas(16) float o[kMaxRows][kHeadDim];
    alignas(8) SoftmaxState state[kMaxRows];
  };

  // As many stages as fit: what counts is bytes in flight.
  static constexpr int kFit = (DECODE_SMEM_KB * 1024 - 512 - static_cast<int>(sizeof(WarpParts))) /
                              static_cast<int>(2 * sizeof(KvTile));
  static constexpr int kStages = kFit < 2 ? 2 : kFit < 16 ? kFit : 16;

  struct Ring {
    KvTile k[kStages];
    KvTile v[kStages];
  };
  struct SharedStorage {
    union {
      Ring ring;
      BlockPart block_part;  // once the block's last tile is used
    };
    WarpParts warp_parts;
    Barrier k_full[kStages];
    Barrier k_empty[kStages];
    Barrier v_full[kStages];
    Barrier v_empty[kStages];
    int32_t arrived;  // how many parts of the pair were there before this block's
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);

  // Where two blocks fit into an SM, the next launch's blocks get ready while this one's finish.
  static constexpr int kBlocksPerSm = 2 * (sizeof(SharedStorage) + 1024) <= 228 * 1024 ? 2 : 1;
};

// A position in a ring of stages, and the parity of its round.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace flash_gqa::cuda::sm90
