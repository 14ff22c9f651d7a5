// Whether CUDA can be used here, asked without creating a context.
#include "cuda_probe.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <sstream>

#include "backend.h"
#include "cuda_backend.h"
#include "cuda_context.h"

namespace flash_gqa {
namespace {

// "13.0" of 13000.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Whether one entry of the list of architectures ("80", "90a-real", "120-virtual") runs on `sm`.
bool entry_runs_on(const std::string& entry, int sm) {
  char* end = nullptr;
  const int built = static_cast<int>(std::strtol(entry.c_str(), &end, 10));
  const std::string suffix = end;
  if (suffix.rfind('a', 0) == 0) return built == sm;  // features of this architecture alone
  // Machine code runs inside its major version; the intermediate code on everything later.
  const bool machine = suffix != "-virtual" && built / 10 == sm / 10 && built <= sm;
  const bool intermediate = suffix != "-real" && built <= sm;
  return machine || intermediate;
}

std::string no_device_reason(cudaError_t error, int driver, int runtime) {
  if (error == cudaErrorInsufficientDriver && driver == 0)
    return "no NVIDIA driver (libcuda.so.1) was found";
  if (error == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver supports CUDA " + version_text(driver) +
           ", which is older than this build's CUDA " + version_text(runtime) +
           ": update the driver" + (runtime >= 13000 ? " to 580 or later" : "");
  }
  if (error == cudaErrorNoDevice || error == cudaSuccess) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return "a driver is installed, but no NVIDIA GPU is visible to this process" +
           (visible != nullptr ? " (CUDA_VISIBLE_DEVICES=" + std::string(visible) + ")" : "");
  }
  return cuda_error_text(error);
}

}  // namespace

std::string unusable_reason(int32_t index) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return cuda_error_text(error);
  }
  std::istringstream archs(FLASH_GQA_CUDA_ARCHS);
  for (std::string entry; archs >> entry;)
    if (entry_runs_on(entry, 10 * major + minor)) return "";
  return "GPU " + std::to_string(index) + " is sm_" + std::to_string(10 * major + minor) +
         ", and this build has kernels for " FLASH_GQA_CUDA_ARCHS
         ": build with FLASH_GQA_CUDA_ARCHS=" +
         std::to_string(10 * major + minor);
}

CudaProbe probe_cuda() {
  CudaProbe probe{};
  probe.compiled = true;
  probe.built_archs = FLASH_GQA_CUDA_ARCHS;
  cudaDriverGetVersion(&probe.driver_version);
  cudaRuntimeGetVersion(&probe.runtime_version);
  int count = 0;  // left untouched where the call fails
  const cudaError_t error = cudaGetDeviceCount(&count);
  probe.error = error;
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    probe.reason = no_device_reason(error, probe.driver_version, probe.runtime_version);
    return probe;
  }
  probe.device_count = count;
  probe.reason = unusable_reason(0);
  probe.usable = probe.reason.empty();
  return probe;
}

std::unique_ptr<Backend> make_cuda_backend(int32_t index) {
  const CudaProbe probe = probe_cuda();
  if (probe.device_count == 0) throw BackendError("DEVICE", "cuda: " + probe.reason);
  if (index < 0 || index >= probe.device_count) {
    throw BackendError("DEVICE", "cuda:" + std::to_string(index) + ": expected an index below " +
                                     std::to_string(probe.device_count) +
                                     ", the number of GPUs that this process sees");
  }
  const std::string reason = unusable_reason(index);
  if (!reason.empty()) throw BackendError("DEVICE", "cuda: " + reason);
  return std::make_unique<CudaBackend>(index);
}

}  // namespace flash_gqa
