#include "cuda_context.h"

#include <algorithm>

namespace flash_gqa {
namespace {

constexpr const char* kLost = "context lost: restart the process";

}  // namespace

std::string cuda_error_text(cudaError_t error) {
  return "CUDA error " + std::to_string(static_cast<int>(error)) + ", " + cudaGetErrorName(error) +
         ": " + cudaGetErrorString(error);
}

void CudaContext::enter() {
  if (lost()) throw BackendError("DEVICE", kLost);
  check(cudaSetDevice(device_), "device");
}

void CudaContext::check(cudaError_t error, const std::string& operation,
                        const std::string& recent) {
  if (error == cudaSuccess) return;
  const WaitStatus failed = status(error, operation, recent);
  throw BackendError(failed.code, failed.message);
}

WaitStatus CudaContext::status(cudaError_t error, const std::string& operation,
                               const std::string& recent) {
  if (error == cudaSuccess) return {};
  if (lost()) return {"DEVICE", operation + ": " + kLost};
  const std::string message = operation + ": " + cuda_error_text(error);
  if (is_sticky(error)) {
    lost_ = true;
    const std::string blame =
        recent.empty() ? "" : ", made by one of: " + recent + " (FLASH_GQA_SYNC=1 says which)";
    return {"DEVICE", message + blame + "; " + kLost};
  }
  const bool unsupported = error == cudaErrorNotSupported || error == cudaErrorInvalidValue;
  return {unsupported ? "UNSUPPORTED" : "DEVICE", message};
}

bool CudaContext::is_sticky(cudaError_t error) {
  cudaGetLastError();  // an error that is not sticky would otherwise be met by the next launch
  return cudaFree(nullptr) == error;
}

std::string RecentOperations::text() const {
  if (count_ == 0) return "device";
  std::string all;
  for (size_t i = count_ - std::min(count_, kKept); i < count_; ++i)
    all += (all.empty() ? "" : ", ") + std::string(names_[i % kKept]);
  return all;
}

}  // namespace flash_gqa
