#include <cstring>

#include "kernels.h"
#include "micro.h"
#include "ranges.h"

namespace flash_gqa::cpu {

void convert(void* dst, DType to, const void* src, DType from, int64_t elements) {
  const int64_t to_bytes = static_cast<int64_t>(dtype_bytes(to));
  const int64_t from_bytes = static_cast<int64_t>(dtype_bytes(from));
  parallel_ranges(elements, 1, [&](int64_t first, int64_t last) {
    char* out = static_cast<char*>(dst) + first * to_bytes;
    const char* in = static_cast<const char*>(src) + first * from_bytes;
    int64_t n = last - first;
    if (to == from) {
      memcpy(out, in, n * to_bytes);
    } else if (to == DType::kFloat32) {
      micro().to_f32(reinterpret_cast<float*>(out), in, from, n);
    } else if (from == DType::kFloat32) {
      micro().from_f32(out, to, reinterpret_cast<const float*>(in), n);
    } else {
      constexpr int64_t kChunk = 1024;
      float values[kChunk];
      for (; n > 0; n -= kChunk, in += kChunk * from_bytes, out += kChunk * to_bytes) {
        micro().to_f32(values, in, from, std::min(n, kChunk));
        micro().from_f32(out, to, values, std::min(n, kChunk));
      }
    }
  });
}

}  // namespace flash_gqa::cpu
