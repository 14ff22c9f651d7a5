#include "cuda_waiter.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "fault.h"
#include "thread.h"

namespace flash_gqa {

CudaWaiter::CudaWaiter(CudaContext& context) : context_(context) {
  constexpr size_t kFaultBytes = 256;
  context_.check(pinned_.reserve(kSlots * (kStagingBytes + kFaultBytes)), "device");
  for (size_t i = 0; i < kSlots; ++i) {
    char* base = pinned_.data() + i * (kStagingBytes + kFaultBytes);
    slots_[i].staging = base;
    slots_[i].fault = reinterpret_cast<int32_t*>(base + kStagingBytes);
    context_.check(
        cudaEventCreateWithFlags(&slots_[i].event, cudaEventDisableTiming | cudaEventBlockingSync),
        "device");
  }
  thread_ = start_thread([this] { loop(); });
}

CudaWaiter::~CudaWaiter() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  for (const WaitSlot& slot : slots_) cudaEventDestroy(slot.event);
}

const WaitSlot& CudaWaiter::next_slot() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return begun_ - answered_ < kSlots; });
  return slots_[begun_ % kSlots];
}

void CudaWaiter::push(std::string operations, std::function<WaitStatus()> finish,
                      WaitCallback done) {
  {
    std::lock_guard lock(mutex_);
    waits_.push_back({std::move(operations), std::move(finish), std::move(done)});
    ++begun_;
  }
  changed_.notify_all();
}

void CudaWaiter::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return begun_ == answered_; });
}

void CudaWaiter::abandon() {
  std::lock_guard lock(mutex_);
  abandoned_ = true;
}

void CudaWaiter::loop() {
  cudaSetDevice(context_.device());
  for (;;) {
    Wait wait;
    WaitSlot slot;
    bool dropped;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !waits_.empty(); });
      if (waits_.empty()) return;
      wait = std::move(waits_.front());
      waits_.pop_front();
      slot = slots_[answered_ % kSlots];
      dropped = abandoned_;
    }
    const WaitStatus status = dropped ? WaitStatus{} : outcome(slot, wait);
    wait.finish = nullptr;  // gives back what it held before anyone is told
    {
      std::lock_guard lock(mutex_);
      ++answered_;
    }
    changed_.notify_all();
    if (!dropped) wait.done(status);
  }
}

WaitStatus CudaWaiter::outcome(const WaitSlot& slot, const Wait& wait) {
  if (const cudaError_t error = cudaEventSynchronize(slot.event); error != cudaSuccess) {
    return context_.status(error, "wait", wait.operations);
  }
  const int32_t fault = *slot.fault;
  WaitStatus status = wait.finish != nullptr ? wait.finish() : WaitStatus{};
  if (status.code == nullptr && fault != kFaultNone)
    return {"INVALID_ARGUMENT", fault_message(wait.operations, fault)};
  return status;
}

HostCopier::~HostCopier() {
  for (cudaEvent_t event : copied_)
    if (event != nullptr) cudaEventDestroy(event);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

cudaError_t HostCopier::open() {
  if (stream_ != nullptr) return cudaSuccess;
  cudaError_t error = pinned_.reserve(2 * kPieceBytes);
  for (cudaEvent_t& event : copied_)
    if (error == cudaSuccess)
      error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  return error;
}

cudaError_t HostCopier::copy(void* dst, DType to, const void* src, DType from, size_t elements) {
  if (const cudaError_t error = open(); error != cudaSuccess) return error;
  const size_t from_bytes = dtype_bytes(from);
  const size_t piece = kPieceBytes / from_bytes;
  const auto count = [&](size_t first) { return std::min(piece, elements - first); };
  const auto fetch = [&](size_t first) {
    const size_t i = first / piece % 2;
    const cudaError_t error = cudaMemcpyAsync(
        pinned_.data() + i * kPieceBytes, static_cast<const char*>(src) + first * from_bytes,
        count(first) * from_bytes, cudaMemcpyDeviceToHost, stream_);
    return error != cudaSuccess ? error : cudaEventRecord(copied_[i], stream_);
  };
  // One piece is on the bus while the one before it is unpacked.
  cudaError_t error = elements > 0 ? fetch(0) : cudaSuccess;
  for (size_t first = 0; first < elements && error == cudaSuccess; first += piece) {
    if (first + piece < elements) error = fetch(first + piece);
    const size_t i = first / piece % 2;
    if (error == cudaSuccess) error = cudaEventSynchronize(copied_[i]);
    if (error != cudaSuccess) break;
    convert_on_host(static_cast<char*>(dst) + first * dtype_bytes(to), to,
                    pinned_.data() + i * kPieceBytes, from, count(first));
  }
  if (error != cudaSuccess) cudaStreamSynchronize(stream_);
  return error;
}

}  // namespace flash_gqa
