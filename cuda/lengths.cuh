// What is read from device memory about one sequence, by kernels that begin before the launches in front
// are done: read once as a guess, and again behind the wait.
#pragma once

#include "kv_source.h"

namespace flash_gqa::cuda {

// Past the L1, and never merged with another read: what is read before the launches in front are done
// must be read again behind them.
struct FreshRead {
  __device__ int32_t operator()(const int32_t* word) const {
    int32_t x;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(word) : "memory");
    return x;
  }
};

struct Lengths {
  SequenceWords words;
  int32_t prefix_len;

  template <class Read = FreshRead>
  __device__ Lengths(const AttentionParams& params, int32_t b, const Read& read = {})
      : words(read_sequence_words(params.batch, params.kv, b, read)),
        prefix_len(params.prefix_lens != nullptr ? read(params.prefix_lens + b)
                                                 : params.prefix_len) {}
  __device__ bool operator==(const Lengths& other) const {
    return words == other.words && prefix_len == other.prefix_len;
  }
};

}  // namespace flash_gqa::cuda
