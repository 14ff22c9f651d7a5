// What a device can do. Implemented by cpu/cpu_backend.cc and cuda_backend.cc; used by binding/
// alone.
//
// Every operation validates nothing, enqueues and returns: it runs after all that was enqueued
// before it, and the pointers it was given stay valid because release() is in the same order.
// Waiting happens in read() and synchronize().
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/nn_params.h"
#include "../cuda/params.h"

namespace flash_gqa {

// Thrown by a backend where a call cannot be enqueued; `code` is one of the public error codes.
struct BackendError : std::runtime_error {
  BackendError(const char* error_code, const std::string& message)
      : std::runtime_error(message), code(error_code) {}
  const char* code;
};

// How a wait ended. code == nullptr: well.
struct WaitStatus {
  const char* code = nullptr;
  std::string message;
};
using WaitCallback = std::function<void(const WaitStatus&)>;

// Writes `bytes` bytes, found at byte `position` of some host source, to `dst`. May block; may be
// called from several threads at once.
using HostSource = std::function<WaitStatus(void* dst, size_t position, size_t bytes)>;

struct DeviceInfo {
  const char* kind;  // "cpu" or "cuda"
  int32_t index;
  std::string name;        // "AMD EPYC ...", "NVIDIA H100 80GB HBM3"
  std::string arch;        // instruction set in use, or "sm_90"
  int32_t parallelism;     // threads, or multiprocessors
  std::string linear;      // what computes `linear`: "avx512", "cublasLt 13.1", "mma.sync"
  int32_t driver_version;  // CUDA: 13000; else 0
  int32_t runtime_version;
  int64_t shared_memory_bytes;  // CUDA: opt-in shared memory per block in use; else 0
};

struct MemoryInfo {
  int64_t total;  // of the device, or of the share this process may use
  int64_t free;
  int64_t allocated;  // held by live buffers of this environment
  int64_t cached;     // held by the pool, ready for reuse
};

// Host memory that move_pages() reads and writes, pinned where copies are faster for it. It is there
// from the first move to it on: making it takes a while, and happens on the backend's own thread.
class HostBuffer {
 public:
  virtual ~HostBuffer() = default;
};

// The message where it cannot be made.
inline std::string no_host_memory(size_t bytes) {
  return "movePages: the host has not got " + std::to_string(bytes) + " bytes for pages";
}

// Pages of a cache that lie side by side, on the device as on the host.
struct PageRun {
  int32_t page;
  int32_t host_page;
  int32_t count;
};

struct MovePagesParams {
  char* pool;        // [num_layers, num_pages, page_bytes]
  HostBuffer* host;  // [num_layers, host_pages, page_bytes]
  int64_t page_bytes;
  int32_t num_layers;
  int32_t num_pages;   // per layer
  int32_t host_pages;  // per layer
  bool to_host;
  std::vector<PageRun> runs;

  size_t host_bytes() const {
    return static_cast<size_t>(page_bytes) * host_pages * static_cast<size_t>(num_layers);
  }
};

// A recorded sequence of operations. Owned by binding/; must be destroyed before its backend.
class Graph {
 public:
  virtual ~Graph() = default;
};

class Backend {
 public:
  virtual ~Backend() = default;  // drains the queue

  // The environment is going: work that has not begun may be dropped and its waits never answered.
  virtual void abandon() {}

  virtual DeviceInfo info() const = 0;
  virtual MemoryInfo memory() const = 0;

  // Throws OUT_OF_MEMORY. Contents are undefined (FLASH_GQA_POISON=1 fills them with 0xff: NaN).
  virtual void* allocate(size_t bytes) = 0;
  // The memory is reused only by work enqueued after this call. `bytes` as given to allocate().
  virtual void release(void* ptr, size_t bytes) = 0;
  // Gives cached memory back to the system where that needs no waiting.
  virtual void trim() = 0;

  // Copies `elements` host values of type `from` to the device as type `to` (round to nearest
  // even). `src` may be reused as soon as the call returns.
  virtual void upload(void* dst, DType to, const void* src, DType from, size_t elements) = 0;
  // As upload(), but fetches the host values from `source` on the backend's own threads, then calls
  // `done` once with how that went. Operations enqueued after load() see what was loaded.
  virtual void load(void* dst, DType to, HostSource source, DType from, size_t elements,
                    WaitCallback done) = 0;
  virtual void copy(void* dst, const void* src, size_t bytes) = 0;
  virtual void fill(void* dst, uint8_t value, size_t bytes) = 0;
  // Converts on the device: dst[i] = (to) src[i], float dtypes only.
  virtual void convert(void* dst, DType to, const void* src, DType from, size_t elements) = 0;

  // Copies to the host when the queue has got here, then calls `done` once, on a thread of the
  // backend's own. `to` is `from`, or kFloat32. `dst` stays valid until then.
  virtual void read(void* dst, DType to, const void* src, DType from, size_t elements,
                    WaitCallback done) = 0;
  virtual void synchronize(WaitCallback done) = 0;

  // `bytes` of host memory, later. It must go before its backend.
  virtual std::shared_ptr<HostBuffer> host_buffer(size_t bytes) = 0;
  // Moves pages of all layers, after all that is enqueued now, then calls `done` once, on a thread of
  // the backend's own. What is enqueued later may overtake it: until then nobody else may touch these
  // pages, on either side. OUT_OF_MEMORY where the host buffer cannot be had.
  virtual void move_pages(MovePagesParams params, WaitCallback done) = 0;

  // From begin_capture to end_capture operations are recorded, not run. replay() enqueues the whole
  // record.
  virtual void begin_capture() = 0;
  virtual std::unique_ptr<Graph> end_capture() = 0;
  virtual void abort_capture() = 0;
  virtual void replay(Graph& graph) = 0;

  // Bytes of scratch that attention() needs; binding/ allocates them and releases them after the
  // call.
  virtual size_t attention_workspace(const AttentionParams& params) const = 0;
  virtual void attention(const AttentionParams& params, void* workspace) = 0;
  // Which kernel attention() runs for these parameters, e.g. "cpu avx512", "sm80 mma 128x64",
  // "decode split".
  virtual std::string explain(const AttentionParams& params) const = 0;

  virtual void rope_rows(const RopeRowsParams& params) = 0;
  virtual void rope_apply(const RopeApplyParams& params) = 0;
  virtual void append_kv(const AppendKvParams& params) = 0;
  virtual void repeat_kv(const RepeatKvParams& params) = 0;
  virtual void slice_window(const SliceWindowParams& params) = 0;
  virtual void merge_states(const MergeStatesParams& params) = 0;
  virtual void copy_pages(const CopyPagesParams& params) = 0;
  virtual void scatter(const ScatterParams& params) = 0;

  virtual void embedding(const EmbeddingParams& params) = 0;
  // As attention_workspace().
  virtual size_t linear_workspace(const LinearParams& params) const = 0;
  virtual void linear(const LinearParams& params, void* workspace) = 0;
  virtual void rms_norm(const RmsNormParams& params) = 0;
  virtual void add(const AddParams& params) = 0;
  virtual void silu_mul(const SiluMulParams& params) = 0;
  virtual void top_k(const TopKParams& params) = 0;
  virtual size_t sample_workspace(const SampleParams& params) const = 0;
  virtual void sample(const SampleParams& params, void* workspace) = 0;
  virtual void gather_rows(const GatherRowsParams& params) = 0;

  // The fault word that operations of this backend report to (params' `fault`).
  virtual int32_t* fault_word() = 0;
};

// Worker threads are shared by the process; each backend has its own in-order queue.
std::unique_ptr<Backend> make_cpu_backend();

// Why CUDA can or cannot be used here. usable == true: reason is empty.
struct CudaProbe {
  bool compiled;
  bool usable;
  int32_t device_count;
  int32_t driver_version;
  int32_t runtime_version;
  int32_t error;       // cudaError_t
  std::string reason;  // "driver 550.54 is older than CUDA 13.0 needs (580)"
  std::string built_archs;
};
CudaProbe probe_cuda();
// Throws BackendError where `index` cannot be used.
std::unique_ptr<Backend> make_cuda_backend(int32_t index);

}  // namespace flash_gqa
