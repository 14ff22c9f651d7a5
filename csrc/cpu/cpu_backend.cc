#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "../backend.h"
#include "../linear_steps.h"
#include "../machine.h"
#include "../pool.h"
#include "kernels.h"
#include "page_moves.h"
#include "parallel.h"
#include "queue.h"

namespace flash_gqa::cpu {
namespace {

constexpr int64_t kChunkBytes = int64_t{4} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

int64_t chunks_of(int64_t bytes) { return (bytes + kChunkBytes - 1) / kChunkBytes; }

void copy_bytes(void* dst, const void* src, size_t bytes) {
  const int64_t total = static_cast<int64_t>(bytes);
  parallel_for(chunks_of(total), [&](int64_t i) {
    const int64_t first = i * kChunkBytes;
    std::memcpy(static_cast<char*>(dst) + first, static_cast<const char*>(src) + first,
                static_cast<size_t>(std::min(kChunkBytes, total - first)));
  });
}

void fill_bytes(void* dst, uint8_t value, size_t bytes) {
  const int64_t total = static_cast<int64_t>(bytes);
  parallel_for(chunks_of(total), [&](int64_t i) {
    const int64_t first = i * kChunkBytes;
    std::memset(static_cast<char*>(dst) + first, value,
                static_cast<size_t>(std::min(kChunkBytes, total - first)));
  });
}

void convert_or_copy(void* dst, DType to, const void* src, DType from, size_t elements) {
  if (to == from) {
    copy_bytes(dst, src, elements * dtype_bytes(to));
  } else {
    cpu::convert(dst, to, src, from, static_cast<int64_t>(elements));
  }
}

// Host memory in blocks, within what this machine can give. The kernel hands out more address space
// than there is memory, and kills the process when it is touched; so ask first.
class HostBlocks : public PoolSource {
 public:
  explicit HostBlocks(Queue& queue) : queue_(queue) {}

  void* acquire(size_t bytes) override {
    const int64_t wanted = static_cast<int64_t>(bytes);
    if (unchecked_.fetch_add(wanted) + wanted > kUncheckedBytes) {
      unchecked_ = 0;
      if (wanted > free_bytes()) return nullptr;
    }
    // Not aligned_alloc: that wants sizes that are multiples of the alignment.
    void* ptr = nullptr;
    if (posix_memalign(&ptr, bytes < kHugePage ? 64 : kHugePage, bytes) != 0) return nullptr;
    if (bytes >= kHugePage) madvise(ptr, bytes, MADV_HUGEPAGE);
    held_ += wanted;
    return ptr;
  }

  void release(void* ptr, size_t bytes) override {
    held_ -= static_cast<int64_t>(bytes);
    releasing_ += static_cast<int64_t>(bytes);
    // The closure is the owner: it frees the block in its turn even where it is dropped, not run.
    const auto free_block = [bytes](void* block) {
      std::free(block);
      releasing_ -= static_cast<int64_t>(bytes);
    };
    queue_.push({"trim", [block = std::shared_ptr<void>(ptr, free_block)] {}});
  }

  // A block that is being released counts as free: whoever is given room now uses it later.
  int64_t free_bytes() const override {
    const int64_t untouched = std::max<int64_t>(0, held_ + releasing_ - resident_bytes());
    return std::max<int64_t>(0, host_memory().available + releasing_ - untouched);
  }

 private:
  // Asking costs microseconds: small blocks share one question.
  static constexpr int64_t kUncheckedBytes = int64_t{1} << 20;
  // Of the process, not of this backend.
  static inline std::atomic<int64_t> held_{0};
  static inline std::atomic<int64_t> releasing_{0};
  static inline std::atomic<int64_t> unchecked_{0};

  Queue& queue_;
};

class CpuGraph : public Graph {
 public:
  explicit CpuGraph(std::shared_ptr<const std::vector<Task>> record) : tasks(std::move(record)) {}
  // Shared with the replays that are still in the queue.
  const std::shared_ptr<const std::vector<Task>> tasks;
};

class CpuBackend : public Backend {
 public:
  CpuBackend() {
    thread_count();  // throws on a bad FLASH_GQA_THREADS here, where it can be reported
    const char* poison = std::getenv("FLASH_GQA_POISON");
    poison_ = poison != nullptr && std::strcmp(poison, "1") == 0;
  }
  ~CpuBackend() override { pool_.trim(); }

  void abandon() override { queue_.abandon(); }

  DeviceInfo info() const override {
    DeviceInfo info{};
    info.kind = "cpu";
    info.name = processor_name();
    info.arch = isa_name();
    info.parallelism = thread_count();
    info.linear = isa_name();
    return info;
  }

  MemoryInfo memory() const override {
    return {host_memory().total, blocks_.free_bytes(), pool_.allocated(), pool_.cached()};
  }

  void* allocate(size_t bytes) override {
    void* ptr = pool_.allocate(bytes);
    if (poison_) fill(ptr, 0xff, bytes);
    return ptr;
  }
  void release(void* ptr, size_t bytes) override { pool_.release(ptr, bytes); }
  void trim() override { pool_.trim(); }

  void upload(void* dst, DType to, const void* src, DType from, size_t elements) override {
    const size_t bytes = elements * dtype_bytes(from);
    const std::shared_ptr<std::byte[]> staging(new std::byte[bytes]);
    std::memcpy(staging.get(), src, bytes);
    enqueue("upload", [=] { convert_or_copy(dst, to, staging.get(), from, elements); });
  }

  void load(void* dst, DType to, HostSource source, DType from, size_t elements,
            WaitCallback done) override {
    queue_.push({"load", [=] { done(load_now(dst, to, source, from, elements)); }});
  }

  void copy(void* dst, const void* src, size_t bytes) override {
    enqueue("copy", [=] { copy_bytes(dst, src, bytes); });
  }
  void fill(void* dst, uint8_t value, size_t bytes) override {
    enqueue("fill", [=] { fill_bytes(dst, value, bytes); });
  }
  void convert(void* dst, DType to, const void* src, DType from, size_t elements) override {
    enqueue("convert", [=] { convert_or_copy(dst, to, src, from, elements); });
  }

  void read(void* dst, DType to, const void* src, DType from, size_t elements,
            WaitCallback done) override {
    queue_.push({"read", [=, this] {
                   queue_.execute({"read", [=] { convert_or_copy(dst, to, src, from, elements); }});
                   done(queue_.take_error());
                 }});
  }
  void synchronize(WaitCallback done) override {
    queue_.push({"synchronize", [=, this] { done(queue_.take_error()); }});
  }

  std::shared_ptr<HostBuffer> host_buffer(size_t bytes) override { return cpu::host_buffer(bytes); }
  void move_pages(MovePagesParams params, WaitCallback done) override {
    queue_.push({"movePages", [params = std::move(params), done = std::move(done)] {
                   done(cpu::move_pages(params));
                 }});
  }

  void begin_capture() override { recording_ = std::make_shared<std::vector<Task>>(); }
  std::unique_ptr<Graph> end_capture() override {
    return std::make_unique<CpuGraph>(std::exchange(recording_, nullptr));
  }
  void abort_capture() override { recording_ = nullptr; }
  void replay(Graph& graph) override {
    queue_.push({"replay", [this, tasks = static_cast<CpuGraph&>(graph).tasks] {
                   for (const Task& task : *tasks) queue_.execute(task);
                 }});
  }

  size_t attention_workspace(const AttentionParams&) const override { return 0; }
  void attention(const AttentionParams& params, void*) override {
    enqueue("attention", [=] { cpu::attention(params); });
  }
  std::string explain(const AttentionParams&) const override {
    return std::string("cpu ") + isa_name();
  }

  void rope_rows(const RopeRowsParams& params) override {
    enqueue("rope", [=] { cpu::rope_rows(params); });
  }
  void rope_apply(const RopeApplyParams& params) override {
    enqueue("rope", [=] { cpu::rope_apply(params); });
  }
  void append_kv(const AppendKvParams& params) override {
    enqueue("appendKv", [=] { cpu::append_kv(params); });
  }
  void repeat_kv(const RepeatKvParams& params) override {
    enqueue("repeatKv", [=] { cpu::repeat_kv(params); });
  }
  void slice_window(const SliceWindowParams& params) override {
    enqueue("sliceWindow", [=] { cpu::slice_window(params); });
  }
  void merge_states(const MergeStatesParams& params) override {
    std::vector<const void*> o(params.o, params.o + params.num_parts);
    std::vector<const float*> lse(params.lse, params.lse + params.num_parts);
    enqueue("mergeStates", [call = params, o = std::move(o), lse = std::move(lse)]() mutable {
      call.o = o.data();
      call.lse = lse.data();
      cpu::merge_states(call);
    });
  }
  void copy_pages(const CopyPagesParams& params) override {
    std::vector<int32_t> pairs(params.src_dst, params.src_dst + 2 * int64_t{params.num_pairs});
    enqueue("copyPages", [call = params, pairs = std::move(pairs)]() mutable {
      call.src_dst = pairs.data();
      cpu::copy_pages(call);
    });
  }
  void scatter(const ScatterParams& params) override {
    std::vector<int32_t> pairs(params.pairs, params.pairs + 2 * int64_t{params.num_pairs});
    enqueue("scatter", [call = params, pairs = std::move(pairs)]() mutable {
      call.pairs = pairs.data();
      cpu::scatter(call);
    });
  }

  void embedding(const EmbeddingParams& params) override {
    enqueue("embedding", [=] { cpu::embedding(params); });
  }
  size_t linear_workspace(const LinearParams& params) const override {
    return LinearSteps(params, nullptr).bytes;
  }
  void linear(const LinearParams& params, void* workspace) override {
    enqueue("linear", [steps = LinearSteps(params, workspace)] {
      if (steps.has_norm) cpu::rms_norm(steps.norm);
      cpu::linear(steps.product);
      if (steps.has_gate) cpu::silu_mul(steps.gate);
    });
  }
  void rms_norm(const RmsNormParams& params) override {
    enqueue("rmsNorm", [=] { cpu::rms_norm(params); });
  }
  void add(const AddParams& params) override {
    enqueue("add", [=] { cpu::add(params); });
  }
  void silu_mul(const SiluMulParams& params) override {
    enqueue("siluMul", [=] { cpu::silu_mul(params); });
  }
  void top_k(const TopKParams& params) override {
    enqueue("topK", [=] { cpu::top_k(params); });
  }
  size_t sample_workspace(const SampleParams&) const override { return 0; }
  void sample(const SampleParams& params, void*) override {
    enqueue("sample", [=] { cpu::sample(params); });
  }
  void gather_rows(const GatherRowsParams& params) override {
    enqueue("gatherRows", [=] { cpu::gather_rows(params); });
  }

  int32_t* fault_word() override { return queue_.fault_word(); }

 private:
  void enqueue(const char* operation, std::function<void()> run) {
    if (recording_ != nullptr) {
      recording_->push_back({operation, std::move(run)});
    } else {
      queue_.push({operation, std::move(run)});
    }
  }

  static WaitStatus load_now(void* dst, DType to, const HostSource& source, DType from,
                             size_t elements) {
    const int64_t from_bytes = static_cast<int64_t>(dtype_bytes(from));
    const int64_t total = static_cast<int64_t>(elements) * from_bytes;
    std::mutex mutex;
    WaitStatus first_error;
    const auto load_chunk = [&](int64_t i) {
      const int64_t first = i * kChunkBytes;
      const int64_t bytes = std::min(kChunkBytes, total - first);
      const int64_t count = bytes / from_bytes;
      char* out = static_cast<char*>(dst) + first / from_bytes * dtype_bytes(to);
      WaitStatus status;
      if (to == from) {
        status = source(out, first, bytes);
      } else {
        const std::unique_ptr<std::byte[]> staging(new std::byte[bytes]);
        status = source(staging.get(), first, bytes);
        if (status.code == nullptr) cpu::convert(out, to, staging.get(), from, count);
      }
      std::lock_guard lock(mutex);
      if (first_error.code == nullptr) first_error = std::move(status);
    };
    try {
      parallel_for(chunks_of(total), load_chunk);
    } catch (const std::bad_alloc&) {
      return {"OUT_OF_MEMORY", "no host memory to convert a file's values in"};
    }
    return first_error;
  }

  bool poison_;
  std::shared_ptr<std::vector<Task>> recording_;  // while capturing
  HostBlocks blocks_{queue_};
  Pool pool_{blocks_};
  Queue queue_;  // destroyed first: it drains, and frees what the pool gave back
};

}  // namespace
}  // namespace flash_gqa::cpu

namespace flash_gqa {

std::unique_ptr<Backend> make_cpu_backend() { return std::make_unique<cpu::CpuBackend>(); }

}  // namespace flash_gqa
