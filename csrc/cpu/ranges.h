// Row loops on the pool.
#pragma once

#include <algorithm>

#include "parallel.h"

namespace flash_gqa::cpu {

// Work on fewer elements than this is not worth handing to another thread.
constexpr int64_t kRangeElements = 16384;

// Calls f(first, last) for consecutive ranges that cover [0, n), in parallel. `width` is the number
// of elements that one index stands for.
template <class F>
void parallel_ranges(int64_t n, int64_t width, const F& f) {
  const int64_t step = std::max<int64_t>(1, kRangeElements / std::max<int64_t>(1, width));
  const int64_t count = (n + step - 1) / step;
  if (count <= 1) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
  parallel_for(count, [&](int64_t i) { f(i * step, std::min(n, (i + 1) * step)); });
}

}  // namespace flash_gqa::cpu
