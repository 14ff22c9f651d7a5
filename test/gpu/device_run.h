// One program on the device: poisoned memory around everything, the answer back on the host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "../../cuda/attention.h"
#include "../../cuda/dependent_launch.cuh"
#include "attention_program.h"

namespace flash_gqa::test {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

// Device memory between two guards of NaN; everything not uploaded is NaN too.
class Buffer {
 public:
  static constexpr size_t kGuard = 4096;

  explicit Buffer(size_t bytes) : bytes_(bytes) {
    check(cudaMalloc(reinterpret_cast<void**>(&base_), bytes + 2 * kGuard), "cudaMalloc");
    check(cudaMemset(base_, 0xff, bytes + 2 * kGuard), "cudaMemset");
  }
  template <class T>
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size() * sizeof(T)) {
    upload(host.data(), bytes_);
  }
  ~Buffer() { cudaFree(base_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(base_ + kGuard);
  }
  void upload(const void* from, size_t bytes) const {
    check(cudaMemcpy(base_ + kGuard, from, bytes, cudaMemcpyHostToDevice), "upload");
  }
  std::vector<unsigned char> download() const {
    std::vector<unsigned char> host(bytes_);
    check(cudaMemcpy(host.data(), base_ + kGuard, bytes_, cudaMemcpyDeviceToHost), "download");
    return host;
  }
  bool guards_intact() const {
    std::vector<unsigned char> host(bytes_ + 2 * kGuard);
    check(cudaMemcpy(host.data(), base_, host.size(), cudaMemcpyDeviceToHost), "guards");
    for (size_t i = 0; i < kGuard; ++i)
      if (host[i] != 0xff || host[kGuard + bytes_ + i] != 0xff) return false;
    return true;
  }

 private:
  unsigned char* base_ = nullptr;
  size_t bytes_;
};

inline uint16_t to_bits16(DType dtype, float x) {
  uint16_t bits;
  if (dtype == DType::kFloat16) {
    const __half h = __float2half_rn(x);
    std::memcpy(&bits, &h, 2);
  } else {
    const __nv_bfloat16 h = __float2bfloat16_rn(x);
    std::memcpy(&bits, &h, 2);
  }
  return bits;
}

inline float from_bits16(DType dtype, uint16_t bits) {
  if (dtype == DType::kBFloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }
  return __half2float(__ushort_as_half(bits));
}

// Elements of a dtype in host memory, NaN until set.
struct HostTensor {
  DType dtype;
  std::vector<unsigned char> bytes;

  HostTensor(DType type, int64_t elements)
      : dtype(type), bytes(static_cast<size_t>(elements) * dtype_bytes(type), 0xff) {}
  void set(int64_t at, float x) {
    if (dtype == DType::kFloat32) {
      std::memcpy(&bytes[at * 4], &x, 4);
    } else {
      const uint16_t bits = to_bits16(dtype, x);
      std::memcpy(&bytes[at * 2], &bits, 2);
    }
  }
  float get(int64_t at) const {
    if (dtype == DType::kFloat32) {
      float x;
      std::memcpy(&x, &bytes[at * 4], 4);
      return x;
    }
    uint16_t bits;
    std::memcpy(&bits, &bytes[at * 2], 2);
    return from_bits16(dtype, bits);
  }
};

inline Values random_values(const Program& p) {
  Random random(p.data_seed);
  const auto fill = [&](int64_t elements) {
    std::vector<float> x(elements);
    for (float& value : x) {
      value = random.normal();
      if (p.dtype != DType::kFloat32) value = from_bits16(p.dtype, to_bits16(p.dtype, value));
    }
    return x;
  };
  int64_t total_q = 0, total_kv = 0;
  for (int n : p.q_lens) total_q += n;
  for (int n : p.kv_lens) total_kv += n;
  Values values;
  values.q = fill(total_q * p.num_q_heads() * p.head_dim);
  values.k = fill(total_kv * p.num_kv_heads * p.head_dim);
  values.v = fill(total_kv * p.num_kv_heads * p.head_dim);
  return values;
}

struct Outcome {
  cudaError_t status;
  int32_t fault;
  bool guards_intact;
  HostTensor o;            // [total_q, num_q_heads, head_dim]
  std::vector<float> lse;  // [total_q, num_q_heads]
  const char* kernel;
};

inline std::vector<int32_t> prefix_sums(const std::vector<int>& lengths) {
  std::vector<int32_t> sums{0};
  for (int n : lengths) sums.push_back(sums.back() + n);
  return sums;
}

// Whether some row of the sequence sees a key of this page.
inline bool page_is_seen(const Program& p, int b, int page) {
  const int first = page * p.page_size;
  for (int key = first; key < first + p.page_size && key < p.kv_lens[b]; ++key)
    for (int i = 0; i < p.q_lens[b]; ++i)
      if (sees(p, b, p.kv_lens[b] - p.q_lens[b] + i, key)) return true;
  return false;
}

struct PagedCache {
  HostTensor pages;
  std::vector<int32_t> table;
  std::vector<int32_t> table_row;
  int num_pages;
  int max_pages;
};

// Sequences share one pool in random page order; unseen pages have garbage ids, free slots NaN.
inline PagedCache make_cache(const Program& p, const Values& x, Random& random) {
  const int batch = p.batch_size(), d = p.head_dim;
  int needed = 1, max_pages = 1;
  for (int n : p.kv_lens) {
    needed += (n + p.page_size - 1) / p.page_size;
    max_pages = std::max(max_pages, (n + p.page_size - 1) / p.page_size + 1);
  }
  std::vector<int> order(needed);
  for (int i = 0; i < needed; ++i) order[i] = i;
  for (int i = needed - 1; i > 0; --i) std::swap(order[i], order[random.range(0, i)]);
  const int64_t plane = static_cast<int64_t>(p.num_kv_heads) * p.page_size * d;
  PagedCache cache{HostTensor(p.dtype, needed * 2 * plane),
                   std::vector<int32_t>(static_cast<size_t>(batch) * max_pages, 2147480000),
                   {},
                   needed,
                   max_pages};
  int next = 0;
  int64_t token = 0;
  for (int b = 0; b < batch; ++b) {
    const int row = batch - 1 - b;  // rows of the table are not in batch order
    cache.table_row.push_back(row);
    for (int key = 0; key < p.kv_lens[b]; ++key, ++token) {
      const int page = key / p.page_size;
      int32_t& entry = cache.table[static_cast<size_t>(row) * max_pages + page];
      if (key % p.page_size == 0) {
        const bool bad = b == 0 && page == p.bad_page;
        entry = bad ? cache.num_pages : page_is_seen(p, b, page) ? order[next++] : -1 - page;
      }
      if (entry < 0 || entry >= cache.num_pages) continue;
      for (int h = 0; h < p.num_kv_heads; ++h)
        for (int i = 0; i < d; ++i) {
          const int64_t at = entry * 2 * plane +
                             (static_cast<int64_t>(h) * p.page_size + key % p.page_size) * d + i;
          const int64_t from = (token * p.num_kv_heads + h) * d + i;
          cache.pages.set(at, x.k[from]);
          cache.pages.set(at + plane, x.v[from]);
        }
    }
  }
  return cache;
}

// Lengths and tables that are right only when the kernel in front of attention has ended, which lets
// attention take its place long before: what is read too early is garbage. A first run must have
// loaded attention's kernel, or this one would have ended before it starts.
struct Late {
  static constexpr int kMost = 6;
  int32_t* to[kMost];
  const int32_t* from[kMost];
  int count[kMost];
  int used;
};

__global__ void write_late(Late late) {
  cuda::allow_dependents();
  cuda::wait_for_prerequisites();
  for (const long long start = clock64(); clock64() - start < 50'000;) continue;
  for (int i = 0; i < late.used; ++i)
    for (int at = threadIdx.x; at < late.count[i]; at += blockDim.x)
      late.to[i][at] = late.from[i][at];
}

inline void make_late(Late& late, const Buffer& words, const Buffer& right, size_t bytes,
                      Random& random) {
  // Some are right from the beginning, so that each of the others can be the only one that is not.
  if (bytes == 0 || random.chance(40)) return;
  std::vector<int32_t> wrong(bytes / sizeof(int32_t));
  for (int32_t& word : wrong)
    word = random.chance(70) ? random.range(0, 900) : random.range(-9, 99);
  words.upload(wrong.data(), bytes);
  late.to[late.used] = words.as<int32_t>();
  late.from[late.used] = right.as<int32_t>();
  late.count[late.used++] = static_cast<int>(wrong.size());
}

inline Outcome run(const Program& p, const Values& x, cuda::DeviceTraits device,
                   uint64_t layout_seed, bool is_late = false) {
  Random random(layout_seed);
  const int batch = p.batch_size(), d = p.head_dim;
  const std::vector<int32_t> cu_q = prefix_sums(p.q_lens), cu_k = prefix_sums(p.kv_lens);
  const int64_t total_q = cu_q.back(), total_kv = cu_k.back();
  // Rows of q, k and v as a fused projection leaves them: one behind the other, with a gap.
  const int64_t q_stride = p.num_q_heads() * d + 16 * random.range(0, 2);
  const int64_t kv_stride = p.num_kv_heads * d + 16 * random.range(0, 2);

  HostTensor q(p.dtype, total_q * q_stride);
  for (int64_t row = 0; row < total_q; ++row)
    for (int i = 0; i < p.num_q_heads() * d; ++i)
      q.set(row * q_stride + i, x.q[row * p.num_q_heads() * d + i]);
  HostTensor k(p.dtype, p.paged ? 0 : total_kv * kv_stride), v = k;
  for (int64_t row = 0; row < total_kv && !p.paged; ++row)
    for (int i = 0; i < p.num_kv_heads * d; ++i) {
      k.set(row * kv_stride + i, x.k[row * p.num_kv_heads * d + i]);
      v.set(row * kv_stride + i, x.v[row * p.num_kv_heads * d + i]);
    }
  Program unpaged = p;
  unpaged.kv_lens.assign(batch, 0);
  const PagedCache cache = make_cache(p.paged ? p : unpaged, x, random);

  const Buffer dev_q(q.bytes), dev_k(k.bytes), dev_v(v.bytes), dev_pages(cache.pages.bytes);
  const Buffer dev_table(cache.table), dev_table_row(cache.table_row);
  const Buffer dev_cu_q(cu_q), dev_cu_k(cu_k), dev_kv_lens(p.kv_lens);
  const Buffer dev_prefix(p.prefix_lens), dev_sinks(p.sink_logits);
  const Buffer dev_o(total_q * p.num_q_heads() * d * dtype_bytes(p.dtype));
  const Buffer dev_lse(total_q * p.num_q_heads() * sizeof(float));
  const Buffer dev_fault(std::vector<int32_t>{0});

  // The same in every layout: the order of prefill's tiles depends on it.
  const bool uniform = p.uniform() && p.data_seed % 5 < 3;
  AttentionParams params{};
  params.q = dev_q.as<void>();
  params.o = dev_o.as<void>();
  params.lse = dev_lse.as<float>();
  params.sink_logits = p.sink_logits.empty() ? nullptr : dev_sinks.as<float>();
  params.prefix_lens = p.prefix_lens.empty() ? nullptr : dev_prefix.as<int32_t>();
  params.q_stride_token = q_stride;
  KvView& kv = params.kv;
  BatchView& view = params.batch;
  if (p.paged) {
    kv.k = dev_pages.as<void>();
    kv.stride_page = 2ll * p.num_kv_heads * p.page_size * d;
    kv.page_size = p.page_size;
    kv.num_pages = cache.num_pages;
    kv.max_pages = cache.max_pages;
    kv.table_rows = batch;
    kv.page_table = dev_table.as<int32_t>();
    kv.table_row = dev_table_row.as<int32_t>();
    view.kv_lens = uniform ? nullptr : dev_kv_lens.as<int32_t>();
  } else {
    kv.k = dev_k.as<void>();
    kv.v = dev_v.as<void>();
    kv.k_stride_token = kv.v_stride_token = kv_stride;
    kv.total_kv = static_cast<int32_t>(total_kv);
    view.cu_seqlens_k = uniform ? nullptr : dev_cu_k.as<int32_t>();
  }
  view.batch_size = batch;
  view.total_q = static_cast<int32_t>(total_q);
  view.uniform_q_len = p.q_lens[0];
  view.uniform_kv_len = p.kv_lens[0];
  for (int n : p.q_lens) view.max_q_len = std::max(view.max_q_len, n);
  for (int n : p.kv_lens) view.max_kv_len = std::max(view.max_kv_len, n);
  view.cu_seqlens_q = uniform ? nullptr : dev_cu_q.as<int32_t>();
  params.dtype = p.dtype;
  params.num_q_heads = p.num_q_heads();
  params.num_kv_heads = p.num_kv_heads;
  params.head_dim = d;
  params.sm_scale = p.sm_scale;
  params.soft_cap = p.soft_cap;
  params.causal = p.causal;
  params.window = p.window;
  params.sink_tokens = p.sink_tokens;
  params.prefix_len = p.prefix_len;
  params.fixed_split = p.fixed_split;
  params.fault = dev_fault.as<int32_t>();

  const int num_sms = std::min(p.num_sms, device.num_sms);  // all blocks of decode must be resident
  device.memory_gbps *= static_cast<double>(num_sms) / device.num_sms;
  device.num_sms = num_sms;
  const Buffer counters(std::vector<int32_t>(cuda::kNumCounters, 0));
  device.counters = counters.as<int32_t>();
  const Buffer workspace(cuda::attention_workspace(params, device));
  Outcome out{cudaSuccess, 0, false, HostTensor(p.dtype, 0), {}, cuda::explain(params, device)};
  Late late{};
  const Buffer right_table(cache.table), right_table_row(cache.table_row), right_cu_q(cu_q);
  const Buffer right_cu_k(cu_k), right_kv_lens(p.kv_lens), right_prefix(p.prefix_lens);
  if (is_late) {
    const auto bytes = [](const auto& words) { return words.size() * sizeof(int32_t); };
    make_late(late, dev_table, right_table, bytes(cache.table), random);
    make_late(late, dev_table_row, right_table_row, bytes(cache.table_row), random);
    make_late(late, dev_cu_q, right_cu_q, bytes(cu_q), random);
    make_late(late, dev_cu_k, right_cu_k, bytes(cu_k), random);
    make_late(late, dev_kv_lens, right_kv_lens, bytes(p.kv_lens), random);
    make_late(late, dev_prefix, right_prefix, bytes(p.prefix_lens), random);
    check(cudaDeviceSynchronize(), "wrong lengths");
    write_late<<<1, 256>>>(late);
  }
  out.status = cuda::attention(params, workspace.as<void>(), device, nullptr);
  if (out.status == cudaSuccess) out.status = cudaDeviceSynchronize();
  check(out.status, p.describe().c_str());  // a fault of the device ends everything after it too

  out.o.bytes = dev_o.download();
  const std::vector<unsigned char> lse = dev_lse.download();
  out.lse.resize(lse.size() / sizeof(float));
  if (!lse.empty()) std::memcpy(out.lse.data(), lse.data(), lse.size());
  for (const unsigned char byte : counters.download())
    if (byte != 0) check(cudaErrorUnknown, "the counters are not as they were");
  std::memcpy(&out.fault, dev_fault.download().data(), sizeof(int32_t));
  out.guards_intact = dev_o.guards_intact() && dev_lse.guards_intact() &&
                      workspace.guards_intact() && dev_fault.guards_intact();
  return out;
}

}  // namespace flash_gqa::test
