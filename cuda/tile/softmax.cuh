// The softmax steps of one tile of logits held in registers, for any Math that says which row and
// key an element is.
#pragma once

#include "../mask.h"
#include "../softmax.h"

namespace flash_gqa::cuda {

// Turns q k^T into logits: capped where soft_cap > 0. Returns the factor that puts them into units
// of log2. It is positive, so that it can wait until the maximum is known: then it costs nothing,
// being part of the subtraction.
template <class Math>
__device__ __forceinline__ float make_logits(float (&s)[Math::kRows][Math::kKeys], float sm_scale,
                                             float soft_cap) {
  if (!(soft_cap > 0.0f) && sm_scale > 0.0f) return sm_scale * kLog2E;
  const float inner = soft_cap > 0.0f ? sm_scale / soft_cap : sm_scale;
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Math::kKeys; ++j) s[i][j] *= inner;
    if (!(soft_cap > 0.0f)) continue;  // a branch per row: all rows at once would spill
#pragma unroll
    for (int j = 0; j < Math::kKeys; ++j) s[i][j] = soft_cap * Math::tanh(s[i][j]);
  }
  return kLog2E;
}

// keys_of_row(r) says which keys row r of the tile sees. Offsets are taken from the thread's first
// key, so that each comparison is with a constant.
template <int kTileKv, class Math, class KeysOfRow>
__device__ void mask_rows(float (&s)[Math::kRows][Math::kKeys], const Math& math, int32_t first_key,
                          KeysOfRow&& keys_of_row) {
  const int32_t base = first_key + math.first_key();
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    const KeyRange seen = keys_of_row(math.row(i));
    if (tile_is_full(seen, first_key, kTileKv)) continue;
    const KeyRange visible{seen.sink_end - base, seen.lo - base, seen.hi - base};
#pragma unroll
    for (int j = 0; j < Math::kKeys; ++j)
      if (!visible.contains(Math::key_step(j))) s[i][j] = minus_infinity();
  }
}

// Masks whole keys of the tile: bit j of `keys` is its j-th.
template <class Math>
__device__ void mask_keys(float (&s)[Math::kRows][Math::kKeys], const Math& math, uint64_t keys) {
  keys >>= math.first_key();
#pragma unroll
  for (int j = 0; j < Math::kKeys; ++j)
    if (keys >> Math::key_step(j) & 1)
#pragma unroll
      for (int i = 0; i < Math::kRows; ++i) s[i][j] = minus_infinity();
}

// One step of the online softmax: s, times scale in units of log2, becomes the unnormalised
// probabilities; o is rescaled where a maximum grew by much. Sums stay per thread until
// reduce_sums().
template <class Math>
__device__ void update_softmax(float (&s)[Math::kRows][Math::kKeys], float scale,
                               SoftmaxState (&state)[Math::kRows],
                               float (&o)[Math::kRows][Math::kCols]) {
  // Most tiles raise no maximum. One vote tells, before lanes that share a row compare theirs.
  float tile_max[Math::kRows];
  bool grows = false;
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    tile_max[i] = s[i][0];
#pragma unroll
    for (int j = 1; j < Math::kKeys; ++j) tile_max[i] = fmaxf(tile_max[i], s[i][j]);
    grows |= state[i].exceeded_by(tile_max[i] * scale, kMaxSlack);
  }
  if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
    for (int i = 0; i < Math::kRows; ++i) {
#pragma unroll
      for (int lanes = 1; lanes < Math::kLanes; lanes *= 2)
        tile_max[i] =
            fmaxf(tile_max[i], __shfl_xor_sync(0xffffffffu, tile_max[i], lanes * Math::kLaneStep));
      const float rescale = state[i].raise_max(tile_max[i] * scale, kMaxSlack);
#pragma unroll
      for (int j = 0; j < Math::kCols; ++j) o[i][j] *= rescale;
    }
  }
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    const float reference = state[i].reference();
#pragma unroll
    for (int j = 0; j < Math::kKeys; ++j) {
      s[i][j] = Math::exp2(fmaf(s[i][j], scale, -reference));
      state[i].sum += s[i][j];
    }
  }
}

template <class Math>
__device__ void reduce_sums(SoftmaxState (&state)[Math::kRows]) {
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i)
#pragma unroll
    for (int lanes = 1; lanes < Math::kLanes; lanes *= 2)
      state[i].sum += __shfl_xor_sync(0xffffffffu, state[i].sum, lanes * Math::kLaneStep);
}

}  // namespace flash_gqa::cuda
