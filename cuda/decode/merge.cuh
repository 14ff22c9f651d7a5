// Parts of rows put together: a block's warps through shared memory, a pair's blocks through
// memory, in the same launch. Parts are taken in their own order, never in that of arrival.
#pragma once

#include "../epilogue.cuh"
#include "decode_args.h"

namespace flash_gqa::cuda::decode {

// Columns that a thread merges at a time, of a block's own parts and of other blocks': of these, 8 are
// a sector of memory.
constexpr int kQuad = 4;
constexpr int kOctet = 8;

// The row tile of a block on its way out.
struct OutputRows {
  int32_t q_start;
  int32_t kv_head;
  int32_t first_row;
  int32_t rows;

  template <class Element>
  __device__ void store(const DecodeArgs& args, int32_t r, int32_t col, SoftmaxState state,
                        const float4& o) const {
    store<Element, 1>(args, r, col, state, {o});
  }
  // Of kQuads times 4 columns.
  template <class Element, int kQuads>
  __device__ void store(const DecodeArgs& args, int32_t r, int32_t col, SoftmaxState state,
                        const float4 (&o)[kQuads]) const {
    const AttentionParams& params = args.params;
    const int32_t token = args.token_of(first_row + r);
    const int32_t head = kv_head * args.group_size + first_row + r - token * args.group_size;
    const int64_t row = (static_cast<int64_t>(q_start) + token) * params.num_q_heads + head;
    float scale = 1.0f;
    if (params.sink_logits != nullptr) scale = state.add_sink(params.sink_logits[head]);
    scale *= state.inverse_sum();
    auto* const to =
        reinterpret_cast<uint2*>(static_cast<Element*>(params.o) + row * params.head_dim + col);
#pragma unroll
    for (int i = 0; i < kQuads; ++i)
      to[i] = make_uint2(ptx::pack<Element>(o[i].x * scale, o[i].y * scale),
                         ptx::pack<Element>(o[i].z * scale, o[i].w * scale));
    if (col == 0 && params.lse != nullptr) params.lse[row] = state.lse();
  }
};

__device__ __forceinline__ void scale(float4& o, float factor) {
  o.x *= factor;
  o.y *= factor;
  o.z *= factor;
  o.w *= factor;
}

__device__ __forceinline__ void add_scaled(float4& o, const float4& x, float factor) {
  o.x += x.x * factor;
  o.y += x.y * factor;
  o.z += x.z * factor;
  o.w += x.w * factor;
}

// A word of a place that waits for its part. No arithmetic gives these bits: the NaN of every
// instruction is 0x7fffffff.
constexpr uint32_t kEmpty = 0xffffffffu;

__device__ __forceinline__ bool is_empty(float x) { return __float_as_uint(x) == kEmpty; }

// Relaxed and of the whole device, since writer and reader are different blocks. Nothing is ordered:
// each word says for itself whether it is there.
__device__ __forceinline__ float4 load_place(const float4* place) {
  float4 x;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(place)
               : "memory");
  return x;
}
__device__ __forceinline__ float2 load_place(const float2* place) {
  float2 x;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];"
               : "=f"(x.x), "=f"(x.y)
               : "l"(place)
               : "memory");
  return x;
}
__device__ __forceinline__ void store_place(float4* place, float4 x) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(place), "f"(x.x),
               "f"(x.y), "f"(x.z), "f"(x.w)
               : "memory");
}
__device__ __forceinline__ void store_place(float2* place, float2 x) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(place), "f"(x.x), "f"(x.y)
               : "memory");
}

// A pair whose keys several teams share: its i-th part is that of block `first` + i * stride.
//
// Parts travel through places in memory that are empty between launches. Who needs a part waits
// until no word of it is empty, takes it and empties its place again: the data are their own signal,
// so that no fence, no counter and no second trip to memory stand between writer and reader. Every
// place has one reader.
struct SharedPair {
  OutputRows out;
  int32_t parts;
  int32_t at;      // this block's own place for the first 8 columns of the first row
  int32_t first;   // that of the first part; a block can hold the last part of one pair and the
                   // first of another, so that it has two
  int32_t second;  // that of the second part, and
  int32_t step;    // the distance from there to the third, and so on
  int32_t begin;   // this block's share of the tasks, each 8 columns of one row, to be finished
  int32_t end;     // by it
  // As many as make work for the whole block:
  int32_t log_lanes;        // threads that share a task of finish()
  int32_t log_row_threads;  // threads of a row while the block's own parts are merged

  // The parts belong to teams first_team, first_team + 1, ...; this block, the x-th of its team, has
  // part `mine`.
  __device__ SharedPair(const DecodeArgs& args, const OutputRows& rows, int32_t x, int32_t octets,
                        int32_t threads, int32_t first_team, int32_t num_parts, int32_t mine)
      : out(rows), parts(num_parts), log_lanes(0), log_row_threads(8) {
    const int32_t row_places = args.rows * octets;
    const int32_t block = first_team * args.team_blocks + x;
    step = 2 * args.team_blocks * row_places;
    first = (2 * block + 1) * row_places;
    second = 2 * block * row_places + step;
    at = mine == 0 ? first : second + (mine - 1) * step;
    const int32_t tasks = rows.rows * octets;
    const int32_t share = (tasks + parts - 1) / parts;
    begin = share * mine;
    end = min_i32(tasks, begin + share);
    while (log_lanes < 5 && (1 << log_lanes) < parts && (2 << log_lanes) * share <= threads)
      ++log_lanes;
    while (rows.rows << log_row_threads > threads) --log_row_threads;
  }

  __device__ int32_t place(int32_t part, int32_t task) const {
    return task + (part == 0 ? first : second + (part - 1) * step);
  }

  // Four columns, `quad` counted from the first row on.
  __device__ void store_part(const DecodeArgs& args, int32_t quad, SoftmaxState state,
                             const float4& o) const {
    store_place(args.part_o + 2 * at + quad, o);
    if (quad % 2 == 0)
      store_place(args.part_state + at + quad / 2, make_float2(state.max, state.sum));
  }

  // Finishes this block's share of the rows, once the other blocks, all of which are resident, have
  // stored their parts.
  template <class T>
  __device__ void finish(const DecodeArgs& args) const {
    constexpr int kOctets = T::kHeadDim / kOctet;
    const int32_t lanes = 1 << log_lanes;
    const int32_t lane = threadIdx.x & (lanes - 1);
#pragma unroll 1
    for (int32_t base = begin; base < end; base += T::kThreads >> log_lanes) {
      const int32_t task = base + (static_cast<int32_t>(threadIdx.x) >> log_lanes);
      const int32_t col = task % kOctets * kOctet;
      const bool valid = task < end && col < args.params.head_dim;
      SoftmaxState state;
      float4 o[2] = {};
      if (parts <= lanes) {
        if (valid && lane < parts) take_parts<1>(args, lane, lanes, task, state, o);
      } else {
#pragma unroll 1
        for (int32_t part = valid ? lane : parts; part < parts; part += kPartsAtOnce * lanes)
          take_parts<kPartsAtOnce>(args, part, lanes, task, state, o);
      }
      const SoftmaxState own = state;
#pragma unroll 1
      for (int32_t by = 1; by < lanes; by *= 2)
        state.max = fmaxf(state.max, __shfl_xor_sync(0xffffffffu, state.max, by));
      const float factor = exp2f(own.max - state.reference());
      state.sum *= factor;
#pragma unroll
      for (float4& x : o) scale(x, factor);
#pragma unroll 1
      for (int32_t by = 1; by < lanes; by *= 2) {
        state.sum += __shfl_xor_sync(0xffffffffu, state.sum, by);
#pragma unroll
        for (float4& x : o) {
          x.x += __shfl_xor_sync(0xffffffffu, x.x, by);
          x.y += __shfl_xor_sync(0xffffffffu, x.y, by);
          x.z += __shfl_xor_sync(0xffffffffu, x.z, by);
          x.w += __shfl_xor_sync(0xffffffffu, x.w, by);
        }
      }
      if (valid && lane == 0) out.store<typename T::Element>(args, task / kOctets, col, state, o);
    }
  }

 private:
  // Enough for the parts of a device's whole share, in one trip to memory.
  static constexpr int kPartsAtOnce = 5;

  // Parts `part`, `part` + lanes, ...: kCount of them.
  template <int kCount>
  __device__ __forceinline__ void take_parts(const DecodeArgs& args, int32_t part, int32_t lanes,
                                             int32_t task, SoftmaxState& state,
                                             float4 (&o)[2]) const {
    float2 s[kCount];
    float4 x[kCount][2];
    bool missing;
    do {
      missing = false;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        s[i] = make_float2(minus_infinity(), 0.0f);
        x[i][0] = x[i][1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (part + i * lanes >= parts) continue;
        const int32_t at = place(part + i * lanes, task);
        s[i] = load_place(args.part_state + at);
        x[i][0] = load_place(args.part_o + 2 * at);
        x[i][1] = load_place(args.part_o + 2 * at + 1);
        missing |= is_empty(s[i].x) || is_empty(s[i].y);
#pragma unroll
        for (const float4& y : x[i])
          missing |= is_empty(y.x) || is_empty(y.y) || is_empty(y.z) || is_empty(y.w);
      }
    } while (missing);

    float max = minus_infinity();
#pragma unroll
    for (int i = 0; i < kCount; ++i) max = fmaxf(max, s[i].x);
    const float factor = state.raise_max(max);
    scale(o[0], factor);
    scale(o[1], factor);
    const float empty = __uint_as_float(kEmpty);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float of_part = state.add(SoftmaxState{s[i].x, s[i].y});
      add_scaled(o[0], x[i][0], of_part);
      add_scaled(o[1], x[i][1], of_part);
      if (part + i * lanes >= parts) continue;
      const int32_t at = place(part + i * lanes, task);
      store_place(args.part_state + at, make_float2(empty, empty));
      store_place(args.part_o + 2 * at, make_float4(empty, empty, empty, empty));
      store_place(args.part_o + 2 * at + 1, make_float4(empty, empty, empty, empty));
    }
  }
};

}  // namespace flash_gqa::cuda::decode
