// The queries of a block, on their way to its products.
#pragma once

#include "traits.cuh"

namespace flash_gqa::cuda::decode {

// The queries of a row tile. With the copy engine they come through shared memory, a chunk by each
// thread, and stay there, or in the registers of their warps as an operand of every product with its
// keys; without it, shared memory is the keys' alone. Columns that do not exist are zeros; rows that
// do not exist repeat the last.
template <class T>
struct Queries {
  using Element = typename T::Element;
  static constexpr int kChunks = T::kHeadDim / 8;  // of 16 bytes in a row
  static constexpr int kCopies = (T::kRows * kChunks + T::kThreads - 1) / T::kThreads;

  // The queries of one warp as an operand of its products: A, or, of 8 rows, B.
  static constexpr int kWords = T::kRows == 8 ? 2 : 4;
  uint32_t q[T::kHeadDim / 16][kWords];
  const Element* from[kCopies];

  __device__ Queries() {}

  // Where this thread's chunks are.
  __device__ void find(const DecodeArgs& args, const Pair& pair, const RowTile& tile) {
    if constexpr (T::kTma) {
      const int thread = ptx::fresh_thread_index();
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int at = thread + i * T::kThreads;
        const int chunk = at % kChunks;
        from[i] = row(args, pair, tile, at / kChunks) + chunk * 8;
        if (chunk * 8 >= args.params.head_dim) from[i] = nullptr;
      }
    }
  }
  __device__ void ask(SharedStorage<T>& shared, const DecodeArgs& args, const Pair& pair,
                      const RowTile& tile, int buffer) {
    if constexpr (T::kTma) {
      const int thread = ptx::fresh_thread_index();
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int at = thread + i * T::kThreads;
        if (at < T::kRows * kChunks)
          ptx::cp_async_16(shared.queries[buffer].address(at / kChunks, at % kChunks),
                           from[i] != nullptr ? from[i] : args.params.q, from[i] != nullptr);
      }
      ptx::cp_async_commit();
    } else {
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto* words = reinterpret_cast<const uint32_t*>(
            row(args, pair, tile, i * 8 + lane / 4) + lane % 4 * 2);
#pragma unroll
        for (int c = 0; c < T::kHeadDim / 8; ++c)
          q[c / 2][c % 2 * 2 + i] = c * 8 < args.params.head_dim ? words[c * 4] : 0;
      }
    }
  }
  // A barrier of the block stands between arrived() and take(). What was asked for behind the queries is
  // not waited for.
  __device__ void arrived() const {
    if constexpr (T::kTma) ptx::cp_async_wait<0>();
  }
  __device__ void take(const SharedStorage<T>& shared, int buffer) {
    if constexpr (T::kTma && T::kQueriesInRegisters) {
      const int lane = ptx::fresh_thread_index() % 32;
      const auto& tile = shared.queries[buffer];
      const uint32_t at = tile.address(lane % T::kRows, lane / T::kRows);
      // One load brings 16 columns of 16 rows, or 32 of 8.
#pragma unroll
      for (int d = 0; d < T::kHeadDim / 16; d += 4 / kWords) {
        uint32_t words[4];
        ptx::ldmatrix_x4(words, tile.move(at, 0, 2 * d));
#pragma unroll
        for (int i = 0; i < 4; ++i) q[d + i / kWords][i % kWords] = words[i];
      }
    }
  }

  template <class Math, class KTile>
  __device__ void multiply(const Math& math, float (&s)[Math::kRows][Math::kKeys],
                           const SharedStorage<T>& shared, const KTile& k) const {
    if constexpr (T::kQueriesInRegisters) {
      math.multiply_qk(s, q, k);
    } else {
      math.multiply_qk(s, shared.queries[0], k);
    }
  }

 private:
  __device__ static const Element* row(const DecodeArgs& args, const Pair& pair,
                                       const RowTile& tile, int32_t i) {
    const int32_t r = tile.first_row + min_i32(i, tile.rows - 1);
    const int32_t token = args.token_of(r);
    const int32_t head = tile.kv_head * args.group_size + r - token * args.group_size;
    return static_cast<const Element*>(args.params.q) +
           (static_cast<int64_t>(pair.sequence.q_start) + token) * args.params.q_stride_token +
           static_cast<int64_t>(head) * args.params.head_dim;
  }
};

}  // namespace flash_gqa::cuda::decode
