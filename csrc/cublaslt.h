// cuBLASLt, found at run time: neither its headers nor its library are needed to build or to load.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>

#include "../cuda/nn_params.h"

namespace flash_gqa {

class CublasLt {
 public:
  // Null where no libcublasLt.so.13 or .so.12 can be used, or FLASH_GQA_CUBLASLT=off says not to.
  static std::unique_ptr<CublasLt> open();
  ~CublasLt();

  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  const std::string& version() const { return version_; }  // "13.1"

  // Bytes of scratch that linear() needs for these parameters; 0 unless out is the residual.
  static size_t workspace(const LinearParams& params);

  // Enqueues the product. false: cuBLASLt has nothing for it, and out is untouched.
  bool linear(const LinearParams& params, void* workspace, cudaStream_t stream);

 private:
  struct Api;
  struct Key;
  struct Plan;

  CublasLt();
  const Plan* plan(const LinearParams& params, const void* residual);

  std::unique_ptr<Api> api_;
  void* handle_ = nullptr;
  void* split_space_ = nullptr;  // of products that divide in_features; used in stream order
  std::map<Key, Plan> plans_;
  std::string version_;
};

}  // namespace flash_gqa
