// Programmatic dependent launch (sm_90 and later): a kernel may be set up, and its blocks may become resident, while
// the one before it still runs. Nothing else changes: the kernel begins with begin_dependent(), before it touches any
// memory, and so sees all that the kernels before it wrote. Each of them has waited likewise, so "before" reaches back
// to the beginning of the stream. Only decode/ and sm90/ do something before they wait: they read lengths and page
// ids, which they read again behind it, and decode/ prefetches keys into the L2.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace flash_gqa::cuda {

// The next kernel of the stream may place its blocks once every block of this one has come here.
__device__ __forceinline__ void allow_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// What the kernels before have written is visible from here on.
__device__ __forceinline__ void wait_for_prerequisites() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The first statement of a kernel that launch_dependent() starts. Weights, too, are read behind it: the kernel before
// may have written them.
__device__ __forceinline__ void begin_dependent() {
  allow_dependents();
  wait_for_prerequisites();
}

// Whether the code that runs here is that of sm_90 and later: code that was compiled for older
// devices, which newer ones translate or run, has neither the wait nor the copy engine's instructions
// in it. All kernels are compiled for the same architectures, so that the first one speaks for all on
// its device.
inline bool runs_sm90_code(const void* kernel) {
  constexpr int kDevices = 64;
  static std::atomic<int8_t> known[kDevices];  // 0: not yet; 1: no; 2: yes
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return false;
  int8_t answer = known[device].load(std::memory_order_relaxed);
  if (answer == 0) {
    int major = 0;
    cudaFuncAttributes attributes{};
    const bool yes =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        major >= 9 && cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
        attributes.ptxVersion >= 90;
    answer = yes ? 2 : 1;
    known[device].store(answer, std::memory_order_relaxed);
  }
  return answer == 2;
}

// Older devices refuse the attribute, and kernels without the wait must not start early.
// FLASH_GQA_DEPENDENT_LAUNCH=off shows what dependent launches are worth.
inline bool has_dependent_launch(const void* kernel) {
  const char* wanted = std::getenv("FLASH_GQA_DEPENDENT_LAUNCH");
  return (wanted == nullptr || std::strcmp(wanted, "off") != 0) && runs_sm90_code(kernel);
}

// A multiprocessor changes how its memory is divided between L1 and shared only while it is idle, and in
// a chain of dependent launches it may never be. Where blocks wait for each other (decode/), all that a
// multiprocessor is to hold must then fit into the division that the chain began with: the largest.
inline cudaError_t prefer_shared_memory(const void* kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

template <class... Params, class... Given>
cudaError_t launch_dependent(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem,
                             cudaStream_t stream, Given&&... given) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem;
  config.stream = stream;
  config.attrs = &attribute;
  const auto* const code = reinterpret_cast<const void*>(kernel);
  config.numAttrs = has_dependent_launch(code) ? 1 : 0;
  if (config.numAttrs > 0) {
    const cudaError_t status = prefer_shared_memory(code);
    if (status != cudaSuccess) return status;
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(given)...);
}

}  // namespace flash_gqa::cuda
