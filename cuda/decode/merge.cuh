// Parts of rows put together: a block's warps through shared memory, a pair's blocks through
// memory, in the same launch. Parts are taken in their own order, never in that of arrival.
#pragma once

#include "../epilogue.cuh"
#include "decode_args.h"

namespace flash_gqa::cuda::decode {

// Columns that a thread merges at a time, and those of a part: 8 are a sector of memory.
constexpr int kQuad = 4;
constexpr int kOctet = 8;

// Where four columns of a row go, and what joins them there: known before the row is.
struct OutputPlace {
  uint2* o;
  float* lse;        // or null: not these columns, or not wanted
  float sink_logit;  // or -infinity

  template <class Element>
  __device__ void store(SoftmaxState state, const float4& x) const {
    float scale = 1.0f;
    if (sink_logit != minus_infinity()) scale = state.add_sink(sink_logit);
    scale *= state.inverse_sum();
    *o = make_uint2(ptx::pack<Element>(x.x * scale, x.y * scale),
                    ptx::pack<Element>(x.z * scale, x.w * scale));
    if (lse != nullptr) *lse = state.lse();
  }
};

// The row tile of a block on its way out.
struct OutputRows {
  int32_t q_start;
  int32_t kv_head;
  int32_t first_row;
  int32_t rows;

  template <class Element>
  __device__ OutputPlace place(const DecodeArgs& args, int32_t r, int32_t col) const {
    const AttentionParams& params = args.params;
    const int32_t token = args.token_of(first_row + r);
    const int32_t head = kv_head * args.group_size + first_row + r - token * args.group_size;
    const int64_t row = (static_cast<int64_t>(q_start) + token) * params.num_q_heads + head;
    auto* const o = static_cast<Element*>(params.o) + row * params.head_dim + col;
    return {reinterpret_cast<uint2*>(o),
            col == 0 && params.lse != nullptr ? params.lse + row : nullptr,
            params.sink_logits != nullptr ? params.sink_logits[head] : minus_infinity()};
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
__device__ __forceinline__ bool is_empty(const float2& x) { return is_empty(x.x) || is_empty(x.y); }
__device__ __forceinline__ bool is_empty(const float4& x) {
  return is_empty(x.x) || is_empty(x.y) || is_empty(x.z) || is_empty(x.w);
}

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

// A pair whose keys several teams share: its i-th part is that of the i-th of them.
//
// Parts travel through places in memory that are empty between launches. Who needs a part waits
// until no word of it is empty, takes it and empties its place again: the data are their own signal,
// so that no fence, no counter and no second trip to memory stand between writer and reader. Every
// place has one reader, a state two, neighbours in a warp, of whom one empties it.
struct SharedPair {
  OutputRows out;
  int32_t parts;
  int32_t at;      // the place of this block's part, of its first 8 columns of the first row
  int32_t first;   // that of the first part; a team can have the last part of one pair and the
                   // first of another, so that each of its blocks has two places
  int32_t second;  // that of the second part, and
  int32_t step;    // the distance from there to the third, and so on
  int32_t begin;   // this block's share of the tasks, each 8 columns of one row, to be finished
  int32_t end;     // by it
  // As many as make work for the whole block:
  int32_t log_lanes;        // pairs of threads that share a task of finish()
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
    while (log_lanes < 4 && (1 << log_lanes) < parts && (4 << log_lanes) * share <= threads)
      ++log_lanes;
    while (rows.rows << log_row_threads > threads) --log_row_threads;
  }

  // Four columns, `quad` counted from the first row on.
  __device__ void store_part(const DecodeArgs& args, int32_t quad, SoftmaxState state,
                             const float4& o) const {
    store_place(args.part_o + 2 * at + quad, o);
    if (quad % 2 == 0)
      store_place(args.part_state + at + quad / 2, make_float2(state.max, state.sum));
  }

  // Finishes this block's share of the rows, once the other blocks, all of which are resident, have
  // stored their parts. Two threads share 8 columns of a part, so that a warp reads whole sectors.
  template <class T>
  __device__ void finish(const DecodeArgs& args) const {
    using Element = typename T::Element;
    constexpr int kOctets = T::kHeadDim / kOctet;
    const int thread = ptx::fresh_thread_index();
    const int32_t lanes = 1 << log_lanes;
    const int32_t lane = thread / 2 & (lanes - 1);
#pragma unroll 1
    for (int32_t base = begin; base < end; base += T::kThreads / 2 >> log_lanes) {
      const int32_t task = base + (thread / 2 >> log_lanes);
      const int32_t col = task % kOctets * kOctet + thread % 2 * kQuad;
      const bool valid = task < end && col < args.params.head_dim;
      // All that does not depend on the parts is worked out before the last of them is there: the
      // compiler would leave it for the end, where everyone waits for it.
      OutputPlace to{};
      if (valid && lane == 0) to = out.place<Element>(args, task / kOctets, col);
      asm volatile("" : "+l"(to.o), "+l"(to.lse), "+f"(to.sink_logit));
      Taken taken(*this, args, lane, lanes, task, thread % 2);
      const int32_t last = valid ? parts : 0;
      if (parts <= lanes) {
        taken.template take<1>(last);
      } else if (parts <= 2 * lanes) {
        taken.template take<2>(last);
      } else {
#pragma unroll 1
        for (int32_t part = 0; part < parts; part += kPartsAtOnce * lanes)
          taken.template take<kPartsAtOnce>(last);
      }
      taken.add_lanes();
      if (valid && lane == 0) to.store<Element>(taken.state, taken.o);
    }
  }

 private:
  // Of each of 16 lanes: enough for 80 parts in one trip to memory.
  static constexpr int kPartsAtOnce = 5;

  // What a thread has of four columns of one row: every lanes-th part of them.
  struct Taken {
    const int32_t lanes;
    const bool empties_state;  // which two threads read
    int32_t part;              // the next
    float4* o_at;  // its place, unless it is part 0, whose place is another of its block's
    float2* state_at;
    const int64_t o_step;  // to the place of the one behind it
    const int64_t state_step;
    float4* first_o_at;  // of this thread's first part, whichever it is
    float2* first_state_at;
    SoftmaxState state;  // the maximum is that of all lanes
    float4 o = {};

    __device__ __forceinline__ Taken(const SharedPair& pair, const DecodeArgs& args, int32_t lane,
                                     int32_t num_lanes, int32_t task, int32_t half)
        : lanes(num_lanes),
          empties_state(half == 0),
          part(lane),
          o_step(2ll * num_lanes * pair.step),
          state_step(static_cast<int64_t>(num_lanes) * pair.step) {
      const int32_t at = pair.second + (lane - 1) * pair.step + task;
      const int32_t first_at = lane == 0 ? pair.first + task : at;
      o_at = args.part_o + 2ll * at + half;
      state_at = args.part_state + at;
      first_o_at = args.part_o + 2ll * first_at + half;
      first_state_at = args.part_state + first_at;
    }

    // The next kCount of this thread's parts, as far as they are below `last`. For a whole warp.
    template <int kCount>
    __device__ __forceinline__ void take(int32_t last) {
      float2 s[kCount];
      float4 x[kCount];
      float4* const near_o = part < lanes ? first_o_at : o_at;
      float2* const near_state = part < lanes ? first_state_at : state_at;
      const auto place_of_o = [&](int i) { return i == 0 ? near_o : o_at + i * o_step; };
      const auto place_of_state = [&](int i) {
        return i == 0 ? near_state : state_at + i * state_step;
      };
      uint32_t mine = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        s[i] = make_float2(minus_infinity(), 0.0f);
        x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        mine |= (part + i * lanes < last) << i;
      }
      // What is missing is asked for again, and nothing else: other blocks are still reading their keys.
      for (uint32_t missing = mine; missing != 0;) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          if ((missing >> i & 1) == 0) continue;
          s[i] = load_place(place_of_state(i));
          x[i] = load_place(place_of_o(i));
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i)
          if (!is_empty(s[i]) && !is_empty(x[i])) missing &= ~(1u << i);
      }
      float max = minus_infinity();
#pragma unroll
      for (int i = 0; i < kCount; ++i) max = fmaxf(max, s[i].x);
      __syncwarp();  // both threads have read the state that one of them empties
#pragma unroll 1
      for (int32_t by = 2; by < 2 * lanes; by *= 2)
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, by));
      if constexpr (kCount == kPartsAtOnce) {
        scale(o, state.raise_max(max));
      } else {  // there are no others
        state.max = max;
      }
      const float empty = __uint_as_float(kEmpty);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        add_scaled(o, x[i], state.add(SoftmaxState{s[i].x, s[i].y}));
        if ((mine >> i & 1) == 0) continue;
        if (empties_state) store_place(place_of_state(i), make_float2(empty, empty));
        store_place(place_of_o(i), make_float4(empty, empty, empty, empty));
      }
      part += kCount * lanes;
      o_at += kCount * o_step;
      state_at += kCount * state_step;
    }

    // What the other lanes have of the same columns. For a whole warp.
    __device__ __forceinline__ void add_lanes() {
#pragma unroll 1
      for (int32_t by = 2; by < 2 * lanes; by *= 2) {
        state.sum += __shfl_xor_sync(0xffffffffu, state.sum, by);
        o.x += __shfl_xor_sync(0xffffffffu, o.x, by);
        o.y += __shfl_xor_sync(0xffffffffu, o.y, by);
        o.z += __shfl_xor_sync(0xffffffffu, o.z, by);
        o.w += __shfl_xor_sync(0xffffffffu, o.w, by);
      }
    }
  };
};

}  // namespace flash_gqa::cuda::decode
