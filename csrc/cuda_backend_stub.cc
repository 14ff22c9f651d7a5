// Takes the place of cuda_backend.cc in a build without CUDA.
#include "backend.h"

namespace flash_gqa {

CudaProbe probe_cuda() {
  CudaProbe probe{};
  probe.reason =
      "this build of flash-gqa has no CUDA code: install the CUDA toolkit (nvcc) and run "
      "FLASH_GQA_CUDA=on npm run compile";
  return probe;
}

std::unique_ptr<Backend> make_cuda_backend(int32_t) {
  throw BackendError("DEVICE", probe_cuda().reason);
}

}  // namespace flash_gqa
