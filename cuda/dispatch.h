// From a run-time dtype and head_dim to types: the only place. head_dims.h holds the ascending list
// of instances.cmake, which generates it and the instances.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>
#include <utility>

#include "head_dims.h"  // FLASH_GQA_HEAD_DIMS
#include "params.h"

namespace flash_gqa::cuda {

using HeadDims = std::integer_sequence<int, FLASH_GQA_HEAD_DIMS>;

// Calls f(std::type_identity<Element>{}). An unsupported dtype gives a value-initialised result.
template <class F>
auto with_dtype(DType dtype, F&& f) -> decltype(f(std::type_identity<float>{})) {
  switch (dtype) {
    case DType::kFloat32:
      return f(std::type_identity<float>{});
    case DType::kFloat16:
      return f(std::type_identity<__half>{});
    case DType::kBFloat16:
      return f(std::type_identity<__nv_bfloat16>{});
    default:
      return {};
  }
}

// Calls f(std::integral_constant<int, kHeadDim>{}) with the smallest instance that holds head_dim.
template <class F>
auto with_head_dim(int32_t head_dim, F&& f) -> decltype(f(std::integral_constant<int, 64>{})) {
  decltype(f(std::integral_constant<int, 64>{})) result{};
  [&]<int... kHeadDims>(std::integer_sequence<int, kHeadDims...>) {
    (... ||
     (head_dim <= kHeadDims && (result = f(std::integral_constant<int, kHeadDims>{}), true)));
  }
  (HeadDims{});
  return result;
}

}  // namespace flash_gqa::cuda
