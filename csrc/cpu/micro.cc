// Compiled once per instruction set, with GQA_ISA naming it.
#include "micro.h"

#include "simd.h"

namespace flash_gqa::cpu::GQA_ISA {
namespace {

template <int kValue>
struct Size {
  static constexpr int value = kValue;
};

template <class T>
struct Type {};

template <class Fn>
void with_dtype(DType dtype, Fn fn) {
  if (dtype == DType::kFloat16) return fn(Type<Half>{});
  if (dtype == DType::kBFloat16) return fn(Type<BFloat16>{});
  fn(Type<float>{});
}

// ---- plain rows ----

template <class To, class From>
void convert_row(To* dst, const From* src, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load(src + i));
  if (i < n) store_part(dst + i, load_part(src + i, n - i), n - i);
}

void to_f32(float* dst, const void* src, DType dtype, int64_t n) {
  with_dtype(dtype, [=]<class T>(Type<T>) { convert_row(dst, static_cast<const T*>(src), n); });
}

void from_f32(void* dst, DType dtype, const float* src, int64_t n) {
  with_dtype(dtype, [=]<class T>(Type<T>) { convert_row(static_cast<T*>(dst), src, n); });
}

float dot(const float* a, const float* b, int64_t n) {
  Vec acc = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) acc = fma(load(a + i), load(b + i), acc);
  if (i < n) acc = fma(load_part(a + i, n - i), load_part(b + i, n - i), acc);
  return sum(acc);
}

float row_max(const float* x, int64_t n) {
  const float lowest = -__builtin_huge_valf();
  Vec acc = broadcast(lowest);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) acc = larger(load(x + i), acc);
  if (i < n) acc = larger(load_part(x + i, n - i, lowest), acc);
  return largest(acc);
}

void scale_row(float* x, float factor, int64_t n) {
  const Vec f = broadcast(factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) * f);
  if (i < n) store_part(x + i, load_part(x + i, n - i) * f, n - i);
}

float sum_exp(const float* x, float reference, int64_t n) {
  const Vec r = broadcast(reference);
  Vec acc = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) acc = acc + exp(load(x + i) - r);
  if (i < n) acc = acc + exp(load_part(x + i, n - i, -__builtin_huge_valf()) - r);
  return sum(acc);
}

Vec silu(Vec x) { return x / (broadcast(1.0f) + exp(zero() - x)); }

void silu_mul(float* out, const float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, silu(load(gate + i)) * load(up + i));
  if (i < n)
    store_part(out + i, silu(load_part(gate + i, n - i)) * load_part(up + i, n - i), n - i);
}

// ---- the attention tile ----

// Rows of one head lie too far apart in a cache for the hardware to foresee the next one.
constexpr int kRowsAhead = 4;
constexpr int kCacheLine = 64;

void load_rows(float* dst, int dim_padded, const void* base, DType dtype, const int64_t* offsets,
               int n, int width) {
  with_dtype(dtype, [=]<class T>(Type<T>) {
    const T* rows = static_cast<const T*>(base);
    constexpr int kStep = kCacheLine / sizeof(T);
    for (int row = 0; row < n; ++row) {
      if (row + kRowsAhead < n && offsets[row + kRowsAhead] >= 0)
        for (int i = 0; i < width; i += kStep)
          __builtin_prefetch(rows + offsets[row + kRowsAhead] + i);
      float* out = dst + static_cast<int64_t>(row) * dim_padded;
      const int filled = offsets[row] < 0 ? 0 : width;
      const T* in = rows + (offsets[row] < 0 ? 0 : offsets[row]);
      int i = 0;
      for (; i + kLanes <= filled; i += kLanes) store(out + i, load(in + i));
      if (i < filled) {
        store(out + i, load_part(in + i, filled - i));
        i += kLanes;
      }
      for (; i < dim_padded; i += kLanes) store(out + i, zero());
    }
  });
}

// Accumulators of one register block: the rest of the registers hold the operands.
constexpr int kAccumulators = kRegisters == 32 ? 24 : 12;
constexpr int kMaxVecs = kRegisters == 32 ? 4 : 2;
constexpr int kMaxRows = 12;

// One register block of c = a * b, a sum over `depth` in ascending order for each element. a(m, k)
// lies at a[m * lda + k], or, transposed, at a[k * lda + m]. finish(m, v, sum) takes the results.
template <int kRows, int kVecs, bool kTransposed, class Finish>
inline void register_block(const float* a, int64_t lda, const float* b, int64_t ldb, int depth,
                           Finish finish) {
  Vec acc[kRows][kVecs];
  for (int m = 0; m < kRows; ++m)
    for (int v = 0; v < kVecs; ++v) acc[m][v] = zero();
  for (int k = 0; k < depth; ++k) {
    Vec row[kVecs];
    for (int v = 0; v < kVecs; ++v) row[v] = load(b + k * ldb + v * kLanes);
    for (int m = 0; m < kRows; ++m) {
      const Vec x = broadcast(kTransposed ? a[k * lda + m] : a[m * lda + k]);
      for (int v = 0; v < kVecs; ++v) acc[m][v] = fma(x, row[v], acc[m][v]);
    }
  }
  for (int m = 0; m < kRows; ++m)
    for (int v = 0; v < kVecs; ++v) finish(m, v * kLanes, acc[m][v]);
}

// Rows [0, rows) of one panel of kVecs vectors, in register blocks of as many rows as fit.
template <int kVecs, bool kTransposed, class Finish>
inline void panel(const float* a, int64_t lda, const float* b, int64_t ldb, int rows, int depth,
                  Finish finish) {
  constexpr int kFit = kAccumulators / kVecs < kMaxRows ? kAccumulators / kVecs : kMaxRows;
  int m0 = 0;
  const auto at = [&](int m, int n, Vec sum) { finish(m0 + m, n, sum); };
  const auto block = [&](auto size) {
    constexpr int kRows = decltype(size)::value;
    for (; m0 + kRows <= rows; m0 += kRows)
      register_block<kRows, kVecs, kTransposed>(a + m0 * (kTransposed ? 1 : lda), lda, b, ldb,
                                                depth, at);
  };
  block(Size<kFit>{});
  block(Size<4>{});
  block(Size<2>{});
  block(Size<1>{});
}

// All of c [rows, columns], a panel at a time; `columns` is a multiple of kPadFloats.
template <bool kTransposed, class Finish>
inline void product(const float* a, int64_t lda, const float* b, int64_t ldb, int rows, int columns,
                    int depth, Finish finish) {
  int n0 = 0;
  const auto at = [&](int m, int n, Vec sum) { finish(m, n0 + n, sum); };
  const auto panels = [&](auto size) {
    constexpr int kVecs = decltype(size)::value;
    for (; n0 + kVecs * kLanes <= columns; n0 += kVecs * kLanes)
      panel<kVecs, kTransposed>(a, lda, b + n0, ldb, rows, depth, at);
  };
  panels(Size<kMaxVecs>{});
  if constexpr (kMaxVecs > 3) panels(Size<3>{});
  if constexpr (kMaxVecs > 2) panels(Size<2>{});
  panels(Size<1>{});
}

// Scores of at most 16 rows, the decode step. A vector holds four rows of kQuads keys, because a
// vector of 16 rows would be mostly padding and cost a broadcast per product. The order of each sum
// is that of register_block.
constexpr int kQuads = kLanes / 4;

template <int kVecs, int kRowQuads>
void score_keys(float* s, const float* k, int dim_padded, const float* qt, int dim, float scale) {
  Vec acc[kVecs][kRowQuads];
  for (int i = 0; i < kVecs; ++i)
    for (int r = 0; r < kRowQuads; ++r) acc[i][r] = zero();
  for (int d = 0; d < dim; d += 4) {
    Vec key[kVecs];
    for (int i = 0; i < kVecs; ++i)
      key[i] = load_quads(k + i * kQuads * dim_padded + d, dim_padded);
    const auto step = [&](auto index) {
      constexpr int kIndex = decltype(index)::value;
      const float* row = qt + (d + kIndex) * kPadFloats;
      for (int r = 0; r < kRowQuads; ++r) {
        const Vec q = broadcast_quad(row + 4 * r);
        for (int i = 0; i < kVecs; ++i) acc[i][r] = fma(splat<kIndex>(key[i]), q, acc[i][r]);
      }
    };
    step(Size<0>{});
    step(Size<1>{});
    step(Size<2>{});
    step(Size<3>{});
  }
  for (int i = 0; i < kVecs; ++i) {
    for (int r = 0; r < kRowQuads; ++r) {
      float quads[kLanes];
      store(quads, acc[i][r] * broadcast(scale));
      for (int j = 0; j < kQuads; ++j)
        std::memcpy(s + (i * kQuads + j) * kPadFloats + 4 * r, quads + 4 * j, 4 * sizeof(float));
    }
  }
}

template <int kRowQuads>
void scores_of_few(float* s, const float* k, int dim_padded, const float* qt, int keys, int dim,
                   float scale) {
  constexpr int kVecs = kRowQuads == 1 ? 8 : kRegisters / 2 / kRowQuads;
  int key = 0;
  const auto block = [&](auto size) {
    constexpr int kCount = decltype(size)::value;
    for (; key + kCount * kQuads <= keys; key += kCount * kQuads)
      score_keys<kCount, kRowQuads>(s + key * kPadFloats, k + int64_t{key} * dim_padded, dim_padded,
                                    qt, dim, scale);
  };
  block(Size<kVecs>{});
  block(Size<1>{});
  if (key < keys)
    product<false>(k + int64_t{key} * dim_padded, dim_padded, qt, kPadFloats, keys - key,
                   kPadFloats, dim, [=](int row, int column, Vec dot) {
                     store(s + (key + row) * kPadFloats + column, dot * broadcast(scale));
                   });
}

void scores(float* s, const float* k, int dim_padded, const float* qt, int keys, int dim, int rows,
            float scale) {
  if (rows <= 4) return scores_of_few<1>(s, k, dim_padded, qt, keys, dim, scale);
  if (rows <= 8) return scores_of_few<2>(s, k, dim_padded, qt, keys, dim, scale);
  if (rows <= 16) return scores_of_few<4>(s, k, dim_padded, qt, keys, dim, scale);
  const int rows_padded = pad_floats(rows);
  const Vec factor = broadcast(scale);
  product<false>(
      k, dim_padded, qt, rows_padded, keys, rows_padded, dim,
      [=](int key, int row, Vec dot) { store(s + key * rows_padded + row, dot * factor); });
}

void accumulate(float* o, const float* s, int rows_padded, const float* v, int dim_padded,
                const float* factor, int rows, int keys) {
  product<true>(s, rows_padded, v, dim_padded, rows, dim_padded, keys,
                [=](int row, int column, Vec sum) {
                  float* out = o + static_cast<int64_t>(row) * dim_padded + column;
                  store(out, fma(load(out), broadcast(factor[row]), sum));
                });
}

void soft_cap(float* s, int64_t n, float cap) {
  for (int64_t i = 0; i < n; i += kLanes) store(s + i, broadcast(cap) * tanh(load(s + i)));
}

void column_max(const float* s, int keys, int rows_padded, float* max_out) {
  for (int row = 0; row < rows_padded; row += kLanes) {
    Vec acc = broadcast(-__builtin_huge_valf());
    for (int key = 0; key < keys; ++key) acc = larger(load(s + key * rows_padded + row), acc);
    store(max_out + row, acc);
  }
}

void column_exp2(float* s, int keys, int rows_padded, const float* reference, float* sum_out) {
  for (int row = 0; row < rows_padded; row += kLanes) {
    const Vec r = load(reference + row);
    Vec acc = zero();
    for (int key = 0; key < keys; ++key) {
      float* at = s + key * rows_padded + row;
      const Vec p = exp2(load(at) - r);
      store(at, p);
      acc = acc + p;
    }
    store(sum_out + row, acc);
  }
}

// ---- dot products of rows ----

// Register block of c += x * w^T. Each element is summed in kLanes interleaved parts over k, which
// are then added by sum(): blocks of any shape give the same bits.
template <int kRows, int kFeatures, class W>
inline void dot_block(float* c, int64_t ldc, const float* x, int64_t ldx, const W* w, int64_t ldw,
                      int k) {
  Vec acc[kRows][kFeatures];
  for (int m = 0; m < kRows; ++m)
    for (int n = 0; n < kFeatures; ++n) acc[m][n] = zero();
  int i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Vec row[kRows];
    for (int m = 0; m < kRows; ++m) row[m] = load(x + m * ldx + i);
    for (int n = 0; n < kFeatures; ++n) {
      const Vec weight = load(w + n * ldw + i);
      for (int m = 0; m < kRows; ++m) acc[m][n] = fma(row[m], weight, acc[m][n]);
    }
  }
  if (i < k) {
    Vec row[kRows];
    for (int m = 0; m < kRows; ++m) row[m] = load_part(x + m * ldx + i, k - i);
    for (int n = 0; n < kFeatures; ++n) {
      const Vec weight = load_part(w + n * ldw + i, k - i);
      for (int m = 0; m < kRows; ++m) acc[m][n] = fma(row[m], weight, acc[m][n]);
    }
  }
  for (int m = 0; m < kRows; ++m)
    for (int n = 0; n < kFeatures; ++n) c[m * ldc + n] += sum(acc[m][n]);
}

constexpr int kDotRows = kRegisters == 32 ? 4 : 3;
constexpr int kDotFeatures = kRegisters == 32 ? 6 : 4;

// All rows against a few features, whose weights stay in the first-level cache meanwhile.
template <int kFeatures, class W>
void dot_features(float* c, int64_t ldc, const float* x, int64_t ldx, int rows, const W* w,
                  int64_t ldw, int k) {
  int m = 0;
  const auto blocks = [&](auto size) {
    constexpr int kRows = decltype(size)::value;
    for (; m + kRows <= rows; m += kRows)
      dot_block<kRows, kFeatures>(c + m * ldc, ldc, x + m * ldx, ldx, w, ldw, k);
  };
  blocks(Size<kDotRows>{});
  blocks(Size<3>{});
  blocks(Size<2>{});
  blocks(Size<1>{});
}

void dot_rows(float* c, int64_t ldc, const float* x, int64_t ldx, int rows, const void* w,
              DType w_dtype, int64_t ldw, int features, int k) {
  with_dtype(w_dtype, [=]<class T>(Type<T>) {
    const T* weights = static_cast<const T*>(w);
    int n = 0;
    for (; n + kDotFeatures <= features; n += kDotFeatures)
      dot_features<kDotFeatures>(c + n, ldc, x, ldx, rows, weights + n * ldw, ldw, k);
    for (; n < features; ++n) dot_features<1>(c + n, ldc, x, ldx, rows, weights + n * ldw, ldw, k);
  });
}

}  // namespace

extern const Micro kMicro;
const Micro kMicro = {
    .to_f32 = to_f32,
    .from_f32 = from_f32,
    .dot = dot,
    .max = row_max,
    .scale = scale_row,
    .sum_exp = sum_exp,
    .silu_mul = silu_mul,
    .load_rows = load_rows,
    .scores = scores,
    .soft_cap = soft_cap,
    .column_max = column_max,
    .column_exp2 = column_exp2,
    .accumulate = accumulate,
    .dot_rows = dot_rows,
};

}  // namespace flash_gqa::cpu::GQA_ISA
