// Why a block that is done stays for a while: so that the next launch is spread evenly.
//
// Where each block has a multiprocessor to itself, and plays one team, those of the next launch take their places
// beside them, once every block has let them in: when it has asked for its last keys, or those of its first piece.
// A multiprocessor whose block has ended by then has room for two, and takes two. It does not remain a
// matter of a few: an H100's multiprocessors hang on two sides. The side that has fewer blocks of a launch
// serves them faster, ends early, and is given more of the next launch, whose slower side it then is. With
// up to three quarters of the blocks on one of them, launches took 3 to 11 % longer (docs/decode.md). So
// who ends early stays until all have let them in.
//
// Nobody can end early where many blocks share a sequence, and wait for each other's parts; and where shares
// are short, there is little to gain. Nothing but time depends on it, and waiting has a bound.
#pragma once

#include "traits.cuh"

namespace flash_gqa::cuda::decode {

constexpr int32_t kLongShare = 12;  // rounds

// For thread 0, when it knows the division, or knows it better. It is the same for all blocks: they all
// count, or none does.
template <class T>
__device__ __forceinline__ void plan_to_linger(SharedStorage<T>& shared, const DecodeArgs& args,
                                               const Division& division) {
  if (args.triggered == nullptr || shared.lingering == kCounted) return;
  const bool is_long = division.rounds_per_unit * division.units_per_team >= kLongShare;
  shared.lingering = is_long ? kWillCount : kNoLingering;
}

// Counts blocks, and wraps to zero with the last of a launch.
template <class T>
__device__ __forceinline__ void count_as_triggered(SharedStorage<T>& shared,
                                                   const DecodeArgs& args) {
  if constexpr (T::kRowGroups > 1) return;  // tiles of many rows let it in at once
  if (args.triggered == nullptr || threadIdx.x != 0 || shared.lingering != kWillCount) return;
  shared.lingering = kCounted;
  asm volatile("red.relaxed.gpu.global.inc.u32 [%0], %1;" ::"l"(args.triggered),
               "r"(gridDim.x * gridDim.y - 1)
               : "memory");
}

// The count is asked for before the block finishes its rows, and looked at behind that: for most blocks it is
// there by then, and complete.
class Lingering {
 public:
  template <class T>
  __device__ __forceinline__ Lingering(SharedStorage<T>& shared, const DecodeArgs& args) {
    count_as_triggered(shared, args);
    if constexpr (T::kRowGroups == 1)
      if (args.triggered != nullptr && threadIdx.x == 0 && shared.lingering == kCounted)
        missing_ = look(args);
  }
  __device__ __forceinline__ void linger(const DecodeArgs& args) {
#pragma unroll 1
    for (int i = 0; missing_ != 0 && i < kMostLooks; ++i) {
      __nanosleep(kPauseNs);
      missing_ = look(args);
    }
  }

 private:
  static constexpr int kPauseNs = 200;
  static constexpr int kMostLooks = 1 << 12;  // some 3 ms

  uint32_t missing_ = 0;

  __device__ static uint32_t look(const DecodeArgs& args) {
    uint32_t x;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(args.triggered) : "memory");
    return x;
  }
};

}  // namespace flash_gqa::cuda::decode
