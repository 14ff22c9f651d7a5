// Blocks of a decode launch wait for each other, so that all of them must become resident, whatever ran on the
// multiprocessors before or runs there meanwhile. A multiprocessor changes how its memory is divided between L1 and
// shared only while it is idle (cuda/dependent_launch.cuh): here kernels leave every division behind, or keep it, and
// decode launches of two blocks a multiprocessor follow, and of one that lingers, which must end.
#pragma once

#include <chrono>
#include <thread>

#include "attention_timing.h"

namespace flash_gqa::test {

// Occupies its multiprocessor for so many cycles.
__global__ void busy_kernel(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}
__global__ void busy_dependent_kernel(long long cycles) {
  cuda::begin_dependent();
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

class Residency {
 public:
  explicit Residency(const cuda::DeviceTraits& device)
      : counters_(device.counters),
        narrow_(Shape{24, 32, 8, 128, 1, 2048, 0, 0}, device),
        wide_(Shape{100, 64, 2, 128, 1, 512, 0, 0}, device),
        lingering_(Shape{12, 32, 8, 128, 1, 2048, 0, 0}, device) {
    for (cudaStream_t* stream : {&stream_, &other_})
      check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "stream");
    check(cudaFuncSetAttribute(busy_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kMostKb << 10),
          "shared memory");
  }
  ~Residency() {
    cudaStreamDestroy(stream_);
    cudaStreamDestroy(other_);
  }

  // Ends the process where a launch has not ended after seconds.
  void check_all() {
    int chains = 0;
    for (const int carveout : {-1, 0, 8, 25, 40, 50, 60, 75, 100})
      for (const int kb : {0, 1, 16, 40, 60, 100, kMostKb})
        for (const int blocks : {20, 66, 131, 132, 264, 600})
          for (int chain = 0; chain < 3; ++chain, ++chains) {
            // Each behind every number of blocks, in every chain: of these there are 18.
            TimedCall& decode = chains / 18 % 3 == 0   ? narrow_
                                : chains / 18 % 3 == 1 ? wide_
                                                       : lingering_;
            check(cudaFuncSetAttribute(busy_kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       carveout),
                  "carveout");
            enqueue(static_cast<Before>(chain), blocks, static_cast<size_t>(kb) << 10, decode);
            if (ended()) continue;
            std::printf("FAIL chain %d behind %d blocks of %d KB, carveout %d %%: decode hangs\n",
                        chain, blocks, kb, carveout);
            std::fflush(stdout);
            std::_Exit(1);  // nothing else ends a kernel
          }
    std::vector<int32_t> counters(cuda::kNumCounters);
    check(cudaMemcpy(counters.data(), counters_, counters.size() * sizeof(int32_t),
                     cudaMemcpyDeviceToHost),
          "counters");
    for (const int32_t counter : counters)
      if (counter != 0) check(cudaErrorUnknown, "the counters are not as they were");
    std::printf("PASS: decode ended in %d chains of launches\n", chains);
  }

 private:
  // What decode meets.
  enum Before {
    kDependent,  // in its stream another division, and a dependent launch that keeps it
    kLong,       // of another stream a kernel that is there when decode begins, and ends later
    kShort,      // of another stream kernels that come all the while
  };
  static constexpr int kMostKb = 130;
  static constexpr long long kMicrosecond = 1700;  // cycles, about

  void enqueue(Before before, int blocks, size_t smem, TimedCall& decode) {
    if (before == kDependent) {
      busy_kernel<<<blocks, 128, smem, stream_>>>(20 * kMicrosecond);
      check(cuda::launch_dependent(busy_dependent_kernel, dim3(132), dim3(128), 0, stream_,
                                   50 * kMicrosecond),
            "dependent");
      decode.enqueue(stream_);
      decode.enqueue(stream_);
    } else if (before == kLong) {
      busy_kernel<<<blocks, 128, smem, other_>>>(60 * kMicrosecond);
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      decode.enqueue(stream_);
      busy_kernel<<<blocks, 128, smem, other_>>>(5 * kMicrosecond);
      decode.enqueue(stream_);
    } else {
      for (int i = 0; i < 20; ++i) {
        busy_kernel<<<blocks, 128, smem, other_>>>(3 * kMicrosecond);
        if (i % 4 == 0) decode.enqueue(stream_);
      }
    }
    check(cudaGetLastError(), "launch");
  }
  bool ended() const {
    const auto start = std::chrono::steady_clock::now();
    for (const cudaStream_t stream : {stream_, other_}) {
      cudaError_t status;
      while ((status = cudaStreamQuery(stream)) == cudaErrorNotReady)
        if (std::chrono::steady_clock::now() - start > std::chrono::seconds(5)) return false;
      check(status, "decode");
    }
    cudaGetLastError();  // "not ready" is no error
    return true;
  }

  const int32_t* counters_;
  TimedCall narrow_, wide_;  // of more sequences than there is one block a multiprocessor for
  TimedCall lingering_;      // of fewer: their blocks stay until all have let the next launch in
  cudaStream_t stream_ = nullptr, other_ = nullptr;
};

}  // namespace flash_gqa::test
