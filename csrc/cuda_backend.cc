#include "cuda_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "../cuda/launch.h"
#include "linear_steps.h"

namespace flash_gqa {
namespace {

bool is_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && std::strcmp(value, "1") == 0;
}

class CudaGraph : public Graph {
 public:
  explicit CudaGraph(cudaGraphExec_t exec) : exec_(exec) {}
  ~CudaGraph() override { cudaGraphExecDestroy(exec_); }  // a replay under way is finished first
  cudaGraphExec_t exec() const { return exec_; }

 private:
  const cudaGraphExec_t exec_;
};

}  // namespace

CudaBackend::CudaBackend(int32_t index)
    : context_(index),
      claim_(index),
      poison_(is_set("FLASH_GQA_POISON")),
      sync_each_(is_set("FLASH_GQA_SYNC")) {
  context_.enter();
  cudaDeviceProp properties;
  context_.check(cudaGetDeviceProperties(&properties, index), "device");
  context_.check(cuda::check_kernel_image(), "device");

  traits_.sm = 10 * properties.major + properties.minor;
  // A newer card can run the kernels of an older one, and a big one the tiles of a small one, so that
  // they are tested.
  const char* sm = std::getenv("FLASH_GQA_SM");
  const int wanted = sm == nullptr ? 0 : std::atoi(sm);
  if (wanted >= 80) traits_.sm = std::min(traits_.sm, wanted);
  traits_.num_sms = properties.multiProcessorCount;
  traits_.max_smem = properties.sharedMemPerBlockOptin;
  traits_.copy_engine = cuda::has_copy_engine();
  traits_.memory_gbps = cuda::memory_gbps();
  const char* limit = std::getenv("FLASH_GQA_MAX_SMEM");
  const int64_t bytes = limit == nullptr ? 0 : std::atoll(limit);
  if (bytes > 0) traits_.max_smem = std::min(traits_.max_smem, static_cast<size_t>(bytes));
  context_.check(cudaStreamCreateWithFlags(&stream_.handle, cudaStreamNonBlocking), "device");
  blocks_ = std::make_unique<CudaBlocks>(stream_.handle);
  pool_ = std::make_unique<Pool>(*blocks_);
  fault_ = static_cast<int32_t*>(pool_->allocate(kSharedBytes));
  context_.check(cudaMemsetAsync(fault_, 0xff, kSharedBytes, stream_.handle), "device");
  context_.check(cudaMemsetAsync(fault_, 0, kWordBytes, stream_.handle), "device");
  traits_.counters = fault_ + 1;
  if (claim_.held()) traits_.merge_places = reinterpret_cast<char*>(fault_) + kWordBytes;
  uploads_ = std::make_unique<UploadRing>(stream_.handle);
  waiter_ = std::make_unique<CudaWaiter>(context_);
  loader_ = std::make_unique<CudaLoader>(context_);
  for (auto* movers : {to_host_, to_device_})
    for (size_t i = 0; i < 2; ++i) movers[i] = std::make_unique<CudaMover>(context_);
  cublas_ = CublasLt::open();

  info_.kind = "cuda";
  info_.index = index;
  info_.name = properties.name;
  info_.arch = "sm_" + std::to_string(traits_.sm);
  info_.parallelism = traits_.num_sms;
  info_.linear = cublas_ != nullptr ? "cublasLt " + cublas_->version() : "mma.sync";
  cudaDriverGetVersion(&info_.driver_version);
  cudaRuntimeGetVersion(&info_.runtime_version);
  info_.shared_memory_bytes = static_cast<int64_t>(traits_.max_smem);
}

CudaBackend::~CudaBackend() {
  // At exit the driver may be gone already, and every call fails: nothing here minds.
  cudaSetDevice(context_.device());
  for (auto* movers : {to_device_, to_host_})
    for (size_t i = 0; i < 2; ++i) movers[i] = nullptr;
  loader_ = nullptr;
  waiter_ = nullptr;
  cudaStreamSynchronize(stream_.handle);
  pool_->release(fault_, kSharedBytes);
  cublas_ = nullptr;
  uploads_ = nullptr;
  pool_ = nullptr;
  blocks_ = nullptr;
  cudaGetLastError();
}

void CudaBackend::abandon() {
  for (auto* movers : {to_device_, to_host_})
    for (size_t i = 0; i < 2; ++i) movers[i]->abandon();
  loader_->abandon();
  waiter_->abandon();
}

DeviceInfo CudaBackend::info() const { return info_; }

MemoryInfo CudaBackend::memory() const {
  size_t free = 0, total = 0;
  if (cudaSetDevice(context_.device()) != cudaSuccess ||
      cudaMemGetInfo(&free, &total) != cudaSuccess)
    cudaGetLastError();
  return {static_cast<int64_t>(total), static_cast<int64_t>(free), pool_->allocated(),
          pool_->cached()};
}

void* CudaBackend::allocate(size_t bytes) {
  context_.enter();
  void* ptr = pool_->allocate(bytes);
  if (poison_) fill(ptr, 0xff, bytes);
  return ptr;
}

// Never throws: it is called by destructors, also once the context is lost.
void CudaBackend::release(void* ptr, size_t bytes) { pool_->release(ptr, bytes); }

void CudaBackend::trim() {
  context_.enter();
  pool_->trim();
}

void CudaBackend::enter(const char* name) {
  context_.enter();
  if (!capturing_) loader_->wait();
  if (!fault_named_) recent_.add(name);
}

void CudaBackend::refuse_in_capture(const char* name) const {
  if (!capturing_) return;
  throw BackendError("UNSUPPORTED", std::string(name) +
                                        ": it cannot be captured: call it before or after "
                                        "device.capture()");
}

template <class Launch>
void CudaBackend::enqueue(const char* name, const Launch& launch) {
  enter(name);
  const cudaError_t error = launch(stream_.handle);
  if (error != cudaSuccess) context_.check(error, name, recent_.text());
  if (sync_each_ && !capturing_) synchronize_now(name);
}

// FLASH_GQA_SYNC=1: an error is thrown here and a fault is remembered here, under one name.
void CudaBackend::synchronize_now(const char* name) {
  context_.check(cudaStreamSynchronize(stream_.handle), name);
  int32_t fault = kFaultNone;
  context_.check(cudaMemcpy(&fault, fault_, sizeof fault, cudaMemcpyDeviceToHost), name);
  fault_named_ = fault != kFaultNone;
  if (!fault_named_) recent_.clear();
}

void CudaBackend::upload(void* dst, DType to, const void* src, DType from, size_t elements) {
  refuse_in_capture("upload");
  enqueue("upload", [&](cudaStream_t) { return uploads_->send(dst, to, src, from, elements); });
}

void CudaBackend::load(void* dst, DType to, HostSource source, DType from, size_t elements,
                       WaitCallback done) {
  refuse_in_capture("load");
  context_.enter();
  loader_->push(dst, to, std::move(source), from, elements, std::move(done), stream_.handle);
}

void CudaBackend::copy(void* dst, const void* src, size_t bytes) {
  enqueue("copy", [&](cudaStream_t stream) {
    return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream);
  });
}

void CudaBackend::fill(void* dst, uint8_t value, size_t bytes) {
  enqueue("fill", [&](cudaStream_t stream) { return cudaMemsetAsync(dst, value, bytes, stream); });
}

void CudaBackend::convert(void* dst, DType to, const void* src, DType from, size_t elements) {
  if (to == from) return copy(dst, src, elements * dtype_bytes(to));
  enqueue("convert", [&](cudaStream_t stream) {
    return cuda::convert(dst, to, src, from, static_cast<int64_t>(elements), stream);
  });
}

void CudaBackend::end_wait(std::function<WaitStatus()> finish, WaitCallback done) {
  const WaitSlot& slot = waiter_->next_slot();
  const std::string operations = recent_.text();
  context_.check(cuda::take_fault(fault_, slot.fault, stream_.handle), "wait", operations);
  context_.check(cudaEventRecord(slot.event, stream_.handle), "wait", operations);
  waiter_->push(operations, std::move(finish), std::move(done));
  recent_.clear();
  fault_named_ = false;
}

void CudaBackend::read(void* dst, DType to, const void* src, DType from, size_t elements,
                       WaitCallback done) {
  refuse_in_capture("read");
  enter("read");
  const size_t bytes = elements * dtype_bytes(from);
  if (bytes > CudaWaiter::kStagingBytes)
    return read_large(dst, to, src, from, elements, std::move(done));
  const char* staging = waiter_->next_slot().staging;
  context_.check(cudaMemcpyAsync(const_cast<char*>(staging), src, bytes, cudaMemcpyDeviceToHost,
                                 stream_.handle),
                 "read", recent_.text());
  end_wait(
      [=] {
        convert_on_host(dst, to, staging, from, elements);
        return WaitStatus{};
      },
      std::move(done));
}

// Later operations may overwrite `src` before the waiting thread has copied it: what is read is a
// snapshot on the device. Where there is no memory for one, the caller waits instead.
void CudaBackend::read_large(void* dst, DType to, const void* src, DType from, size_t elements,
                             WaitCallback done) {
  const size_t bytes = elements * dtype_bytes(from);
  std::shared_ptr<void> snapshot;
  try {
    snapshot = std::shared_ptr<void>(
        pool_->allocate(bytes), [pool = pool_.get(), bytes](void* p) { pool->release(p, bytes); });
    context_.check(
        cudaMemcpyAsync(snapshot.get(), src, bytes, cudaMemcpyDeviceToDevice, stream_.handle),
        "read", recent_.text());
  } catch (const BackendError& error) {
    if (std::strcmp(error.code, "OUT_OF_MEMORY") != 0) throw;
  }
  const bool wait_here = snapshot == nullptr;
  end_wait(
      [=, this] {
        const void* from_device = snapshot != nullptr ? snapshot.get() : src;
        return context_.status(copier_.copy(dst, to, from_device, from, elements), "read");
      },
      std::move(done));
  if (wait_here) waiter_->drain();
}

void CudaBackend::synchronize(WaitCallback done) {
  refuse_in_capture("synchronize");
  context_.enter();
  loader_->wait();
  end_wait(nullptr, std::move(done));
}

std::shared_ptr<HostBuffer> CudaBackend::host_buffer(size_t) {
  const auto free = [this](PinnedPages* pages) { to_host_[0]->free(pages); };
  return std::shared_ptr<PinnedPages>(new PinnedPages, free);
}

void CudaBackend::move_pages(MovePagesParams params, WaitCallback done) {
  refuse_in_capture("movePages");
  enter("movePages");
  CudaMover& mover = *(params.to_host ? to_host_ : to_device_)[moves_++ % 2];
  mover.push(std::move(params), std::move(done), stream_.handle);
}

void CudaBackend::begin_capture() {
  context_.enter();
  loader_->wait();
  // Relaxed, because memory may be allocated and kernels may be loaded meanwhile; what must not be
  // recorded is refused here, and other threads' calls never enter the record.
  context_.check(cudaStreamBeginCapture(stream_.handle, cudaStreamCaptureModeRelaxed), "capture");
  capturing_ = true;
}

std::unique_ptr<Graph> CudaBackend::end_capture() {
  context_.enter();
  capturing_ = false;
  cudaGraph_t graph = nullptr;
  context_.check(cudaStreamEndCapture(stream_.handle, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  context_.check(error, "capture");
  return std::make_unique<CudaGraph>(exec);
}

void CudaBackend::abort_capture() {
  if (!capturing_) return;
  capturing_ = false;
  cudaSetDevice(context_.device());
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream_.handle, &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}

void CudaBackend::replay(Graph& graph) {
  refuse_in_capture("replay");
  enqueue("replay", [&](cudaStream_t stream) {
    return cudaGraphLaunch(static_cast<CudaGraph&>(graph).exec(), stream);
  });
}

size_t CudaBackend::attention_workspace(const AttentionParams& params) const {
  return cuda::attention_workspace(params, traits_);
}

void CudaBackend::attention(const AttentionParams& params, void* workspace) {
  enqueue("attention",
          [&](cudaStream_t stream) { return cuda::attention(params, workspace, traits_, stream); });
}

std::string CudaBackend::explain(const AttentionParams& params) const {
  return cuda::explain(params, traits_);
}

void CudaBackend::rope_rows(const RopeRowsParams& params) {
  enqueue("rope", [&](cudaStream_t stream) { return cuda::rope_rows(params, stream); });
}
void CudaBackend::rope_apply(const RopeApplyParams& params) {
  enqueue("rope", [&](cudaStream_t stream) { return cuda::rope_apply(params, stream); });
}
void CudaBackend::append_kv(const AppendKvParams& params) {
  enqueue("appendKv", [&](cudaStream_t stream) { return cuda::append_kv(params, stream); });
}
void CudaBackend::repeat_kv(const RepeatKvParams& params) {
  enqueue("repeatKv", [&](cudaStream_t stream) { return cuda::repeat_kv(params, stream); });
}
void CudaBackend::slice_window(const SliceWindowParams& params) {
  enqueue("sliceWindow", [&](cudaStream_t stream) { return cuda::slice_window(params, stream); });
}
void CudaBackend::merge_states(const MergeStatesParams& params) {
  enqueue("mergeStates", [&](cudaStream_t stream) { return cuda::merge_states(params, stream); });
}
// The host array is gone by the time of a replay, and its values with it.
void CudaBackend::copy_pages(const CopyPagesParams& params) {
  refuse_in_capture("copyPages");
  enqueue("copyPages", [&](cudaStream_t stream) { return cuda::copy_pages(params, stream); });
}
void CudaBackend::scatter(const ScatterParams& params) {
  refuse_in_capture("scatter");
  enqueue("scatter", [&](cudaStream_t stream) { return cuda::scatter(params, stream); });
}

void CudaBackend::embedding(const EmbeddingParams& params) {
  enqueue("embedding", [&](cudaStream_t stream) { return cuda::embedding(params, stream); });
}
size_t CudaBackend::linear_workspace(const LinearParams& params) const {
  if (cuda::takes_small_linear(params)) return 0;
  const LinearSteps steps(params, nullptr);
  return steps.bytes + (cublas_ != nullptr ? CublasLt::workspace(steps.product) : 0);
}
void CudaBackend::linear(const LinearParams& params, void* workspace) {
  enqueue("linear", [&](cudaStream_t stream) {
    if (cuda::takes_small_linear(params))
      return cuda::small_linear(params, traits_.num_sms, stream);
    const LinearSteps steps(params, workspace);
    cudaError_t error = steps.has_norm ? cuda::rms_norm(steps.norm, stream) : cudaSuccess;
    if (error != cudaSuccess) return error;
    void* rest = static_cast<char*>(workspace) + steps.bytes;
    if (cublas_ == nullptr || !cublas_->linear(steps.product, rest, stream))
      error = cuda::linear(steps.product, stream);
    return error == cudaSuccess && steps.has_gate ? cuda::silu_mul(steps.gate, stream) : error;
  });
}
void CudaBackend::rms_norm(const RmsNormParams& params) {
  enqueue("rmsNorm", [&](cudaStream_t stream) { return cuda::rms_norm(params, stream); });
}
void CudaBackend::add(const AddParams& params) {
  enqueue("add", [&](cudaStream_t stream) { return cuda::add(params, stream); });
}
void CudaBackend::silu_mul(const SiluMulParams& params) {
  enqueue("siluMul", [&](cudaStream_t stream) { return cuda::silu_mul(params, stream); });
}
void CudaBackend::top_k(const TopKParams& params) {
  enqueue("topK", [&](cudaStream_t stream) { return cuda::top_k(params, stream); });
}
size_t CudaBackend::sample_workspace(const SampleParams& params) const {
  return cuda::sample_workspace(params, traits_.num_sms);
}
void CudaBackend::sample(const SampleParams& params, void* workspace) {
  enqueue("sample", [&](cudaStream_t stream) {
    return cuda::sample(params, workspace, traits_.num_sms, stream);
  });
}
void CudaBackend::gather_rows(const GatherRowsParams& params) {
  enqueue("gatherRows", [&](cudaStream_t stream) { return cuda::gather_rows(params, stream); });
}

}  // namespace flash_gqa
