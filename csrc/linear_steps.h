// linear() with a norm before the product or a gate behind it, as the operations that it is short
// for: where no kernel does all of it at once.
#pragma once

#include "../cuda/nn_params.h"

namespace flash_gqa {

struct LinearSteps {
  RmsNormParams norm{};    // if has_norm
  LinearParams product{};  // neither norm nor gate
  SiluMulParams gate{};    // if has_gate
  bool has_norm, has_gate;
  size_t bytes = 0;  // of workspace, beginning with the address given

  LinearSteps(const LinearParams& params, void* workspace)
      : product(params), has_norm(params.norm_weight != nullptr), has_gate(params.gated) {
    const auto take = [&](int64_t elements) {
      char* place = static_cast<char*>(workspace) + bytes;
      const size_t size = static_cast<size_t>(elements) * dtype_bytes(params.dtype);
      bytes += (size + 255) / 256 * 256;
      return place;
    };
    if (has_norm) {
      void* normalised = take(int64_t{params.rows} * params.in_features);
      norm = {params.x,       params.norm_weight, normalised, params.x_stride_row,
              params.dtype,   params.rows,        1,          params.in_features,
              params.norm_eps};
      product.x = normalised;
      product.x_stride_row = params.in_features;
      product.norm_weight = nullptr;
    }
    if (has_gate) {
      const int64_t width = params.out_features;
      char* both = take(int64_t{params.rows} * 2 * width);
      const char* up = both + width * static_cast<int64_t>(dtype_bytes(params.dtype));
      gate = {both,      up,           params.out,  2 * width,
              2 * width, params.dtype, params.rows, params.out_features};
      product.out = both;
      product.out_features = 2 * params.out_features;
      product.gated = false;
    }
  }
};

}  // namespace flash_gqa
