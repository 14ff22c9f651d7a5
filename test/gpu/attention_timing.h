// Plain timings: prefill in TFLOP/s, decode in microseconds per call. Calls run back to back in a
// CUDA graph; K and V rotate over more than 300 MB, so that the L2 does not answer for the memory.
#pragma once

#include <algorithm>

#include "device_run.h"

namespace flash_gqa::test {

struct Shape {
  int batch, num_q_heads, num_kv_heads, head_dim, q_len, kv_len, window, page_size;  // 0: dense
};

// bf16, N(0, 1); pages in order.
class TimedCall {
 public:
  TimedCall(const Shape& shape, const cuda::DeviceTraits& device)
      : shape_(shape),
        device_(device),
        copy_bytes_(2ll * shape.batch * shape.kv_len * shape.num_kv_heads * shape.head_dim * 2),
        copies_(static_cast<int>(std::clamp<int64_t>(320'000'000 / copy_bytes_ + 1, 1, 640))),
        q_(q_bytes()),
        o_(q_bytes()),
        kv_(copy_bytes_ * copies_),
        cu_k_(offsets()),
        lens_(std::vector<int32_t>(shape.batch, shape.kv_len)),
        table_(table()),
        fault_(std::vector<int32_t>{0}),
        workspace_(cuda::attention_workspace(params(0), device)) {
    fill(q_, q_bytes());
    fill(kv_, copy_bytes_ * copies_);
  }

  const char* kernel() const { return cuda::explain(params(0), device_); }

  // Median over `rounds` of the mean over one graph's calls.
  double microseconds(int calls, int rounds) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t start, stop;
    check(cudaStreamCreate(&stream), "stream");
    check(cudaEventCreate(&start), "event");
    check(cudaEventCreate(&stop), "event");
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < calls; ++i) enqueue(stream, i);
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&exec, graph, 0), "graph");
    std::vector<float> times;
    for (int round = 0; round <= rounds; ++round) {
      float ms = 0;
      check(cudaEventRecord(start, stream), "record");
      check(cudaGraphLaunch(exec, stream), "launch");
      check(cudaEventRecord(stop, stream), "record");
      check(cudaEventSynchronize(stop), "synchronize");
      check(cudaEventElapsedTime(&ms, start, stop), "elapsed");
      if (round > 0) times.push_back(ms * 1000.0f / static_cast<float>(calls));
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    cudaStreamDestroy(stream);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  // The i-th call: on the next copy of the keys each.
  void enqueue(cudaStream_t stream, int i = 0) const {
    check(cuda::attention(params(i % copies_), workspace_.as<void>(), device_, stream),
          "attention");
  }

  int copies() const { return copies_; }
  double kv_bytes() const { return static_cast<double>(copy_bytes_); }

 private:
  size_t q_bytes() const {
    return 2ull * shape_.batch * shape_.q_len * shape_.num_q_heads * shape_.head_dim;
  }
  std::vector<int32_t> offsets() const {
    return prefix_sums(std::vector<int>(shape_.batch, shape_.kv_len));
  }
  int pages_per_sequence() const {
    return shape_.page_size == 0 ? 0 : (shape_.kv_len + shape_.page_size - 1) / shape_.page_size;
  }
  std::vector<int32_t> table() const {
    std::vector<int32_t> table(static_cast<size_t>(shape_.batch) * pages_per_sequence());
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    return table;
  }
  static void fill(Buffer& buffer, size_t bytes) {
    Random random(bytes);
    std::vector<uint16_t> block(1 << 20);
    for (uint16_t& x : block) x = to_bits16(DType::kBFloat16, random.normal());
    for (size_t at = 0; at < bytes; at += block.size() * 2)
      check(cudaMemcpy(buffer.as<char>() + at, block.data(), std::min(bytes - at, block.size() * 2),
                       cudaMemcpyHostToDevice),
            "fill");
  }

  AttentionParams params(int copy) const {
    AttentionParams p{};
    p.q = q_.as<void>();
    p.o = o_.as<void>();
    p.q_stride_token = static_cast<int64_t>(shape_.num_q_heads) * shape_.head_dim;
    char* kv = kv_.as<char>() + copy * copy_bytes_;
    p.kv.k = kv;
    if (shape_.page_size > 0) {
      p.kv.stride_page = 2ll * shape_.num_kv_heads * shape_.page_size * shape_.head_dim;
      p.kv.page_size = shape_.page_size;
      p.kv.num_pages = shape_.batch * pages_per_sequence();
      p.kv.max_pages = pages_per_sequence();
      p.kv.table_rows = shape_.batch;
      p.kv.page_table = table_.as<int32_t>();
      p.batch.kv_lens = lens_.as<int32_t>();
    } else {
      p.kv.v = kv + copy_bytes_ / 2;
      p.kv.k_stride_token = p.kv.v_stride_token =
          static_cast<int64_t>(shape_.num_kv_heads) * shape_.head_dim;
      p.kv.total_kv = shape_.batch * shape_.kv_len;
      p.batch.cu_seqlens_k = cu_k_.as<int32_t>();
    }
    p.batch.batch_size = shape_.batch;
    p.batch.total_q = shape_.batch * shape_.q_len;
    p.batch.max_q_len = p.batch.uniform_q_len = shape_.q_len;
    p.batch.max_kv_len = p.batch.uniform_kv_len = shape_.kv_len;
    p.dtype = DType::kBFloat16;
    p.num_q_heads = shape_.num_q_heads;
    p.num_kv_heads = shape_.num_kv_heads;
    p.head_dim = shape_.head_dim;
    p.sm_scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    p.causal = 1;
    p.window = shape_.window;
    p.fault = fault_.as<int32_t>();
    return p;
  }

  Shape shape_;
  cuda::DeviceTraits device_;
  int64_t copy_bytes_;
  int copies_;
  Buffer q_, o_, kv_, cu_k_, lens_, table_, fault_, workspace_;
};

// (query, key) pairs of one head, as the field counts them: half of S^2, or the window's.
inline double pairs(const Shape& s) {
  const double n = s.q_len, w = s.window;
  return s.window > 0 && w < n ? w * w / 2 + (n - w) * w : n * n / 2;
}

inline void time_prefill(const Shape& s, const cuda::DeviceTraits& device) {
  TimedCall call(s, device);
  const double us = call.microseconds(4, 5);
  const double flops = 4.0 * s.batch * s.num_q_heads * s.head_dim * pairs(s);
  std::printf(
      "prefill %2d x %5d  %2d/%-2d  d %3d  window %5d  page %3d  %9.1f us  %6.1f TFLOP/s  %s\n",
      s.batch, s.q_len, s.num_q_heads, s.num_kv_heads, s.head_dim, s.window, s.page_size, us,
      flops / us * 1e-6, call.kernel());
}

inline void time_decode(const Shape& s, const cuda::DeviceTraits& device) {
  TimedCall call(s, device);
  const double us = call.microseconds(std::max(16, call.copies()), 7);
  const double seen = s.window > 0 ? std::min(1.0, static_cast<double>(s.window) / s.kv_len) : 1.0;
  std::printf("decode %3d x %6d  %2d/%-2d  d %3d  window %5d  page %3d  %9.2f us  %7.1f GB/s  %s\n",
              s.batch, s.kv_len, s.num_q_heads, s.num_kv_heads, s.head_dim, s.window, s.page_size,
              us, call.kv_bytes() * seen / us * 1e-3, call.kernel());
}

inline void time_all(const cuda::DeviceTraits& device) {
  for (int s : {2048, 4096, 8192}) time_prefill({1, 32, 8, 128, s, s, 0, 0}, device);
  for (int s : {2048, 8192}) {
    time_prefill({1, 32, 8, 128, s, s, 0, 16}, device);
    time_prefill({4, 32, 8, 64, s, s, 0, 0}, device);
    time_prefill({1, 16, 8, 256, s, s, 0, 0}, device);
  }
  time_prefill({1, 32, 8, 128, 32768, 32768, 4096, 0}, device);
  const int rows[][3] = {
      {1, 1024, 8},  {1, 8192, 8},   {1, 32768, 8},  {1, 131072, 8}, {8, 8192, 8},  {32, 4096, 8},
      {64, 8192, 8}, {128, 2048, 8}, {1, 1024, 32},  {1, 8192, 32},  {8, 8192, 32}, {1, 1024, 1},
      {1, 8192, 1},  {1, 32768, 1},  {1, 131072, 1}, {8, 8192, 1},   {64, 8192, 1}, {128, 2048, 1}};
  for (const auto& [batch, kv_len, kv_heads] : rows)
    time_decode({batch, 32, kv_heads, 128, 1, kv_len, 0, 0}, device);
  for (int page : {16, 64}) {
    time_decode({1, 32, 8, 128, 1, 8192, 0, page}, device);
    time_decode({64, 32, 8, 128, 1, 8192, 0, page}, device);
  }
  time_decode({1, 32, 8, 128, 1, 4096, 0, 0}, device);
  time_decode({1, 32, 8, 128, 1, 131072, 4096, 0}, device);
  time_decode({8, 32, 8, 64, 1, 8192, 0, 0}, device);
  time_decode({8, 16, 8, 256, 1, 8192, 0, 0}, device);
}

}  // namespace flash_gqa::test
