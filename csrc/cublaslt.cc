#include "cublaslt.h"

#include <dlfcn.h>
#include <library_types.h>

#include <algorithm>
#include <compare>
#include <cstdlib>
#include <cstring>

namespace flash_gqa {
namespace {

// The part of cuBLASLt's binary interface that is used here, the same in versions 12 and 13.
constexpr int kSuccess = 0;
constexpr int kCompute32F = 68;  // float32 products and sums: no TF32
constexpr int32_t kTranspose = 1;
constexpr uint32_t kEpilogueBias = 4;
enum DescAttribute { kTransA = 3, kEpilogue = 7, kBiasPointer = 8 };
enum PreferenceAttribute { kMaxWorkspace = 1, kReductionSchemes = 3, kAlignmentA = 5 };  // B, C, D
// Splits of the inner dimension are added in float32, not in the type of the result.
constexpr uint32_t kReduceInComputeType = 2;

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

constexpr size_t kSplitSpaceBytes = size_t{32} << 20;
constexpr size_t kMaxPlans = 1024;

cudaDataType_t data_type(DType dtype) {
  return dtype == DType::kFloat16    ? CUDA_R_16F
         : dtype == DType::kBFloat16 ? CUDA_R_16BF
                                     : CUDA_R_32F;
}

// The largest power of two, up to 256, that divides an address.
uint32_t alignment_of(const void* ptr) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(ptr) | 256;
  return static_cast<uint32_t>(address & -address);
}

}  // namespace

struct CublasLt::Api {
  void* library = nullptr;
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  size_t (*version)();
  int (*desc_create)(void** desc, int compute, int scale_type);
  int (*desc_destroy)(void* desc);
  int (*desc_set)(void* desc, int attribute, const void* value, size_t bytes);
  int (*layout_create)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layout_destroy)(void* layout);
  int (*preference_create)(void** preference);
  int (*preference_destroy)(void* preference);
  int (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
  int (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference,
                   int requested, Heuristic* results, int* returned);
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* a_layout,
                const void* b, void* b_layout, const void* beta, const void* c, void* c_layout,
                void* d, void* d_layout, const Algorithm* algorithm, void* workspace,
                size_t workspace_bytes, cudaStream_t stream);

  template <class Function>
  bool find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
  }

  bool load() {
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
      library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) break;
    }
    return library != nullptr && find(create, "cublasLtCreate") &&
           find(destroy, "cublasLtDestroy") && find(version, "cublasLtGetVersion") &&
           find(desc_create, "cublasLtMatmulDescCreate") &&
           find(desc_destroy, "cublasLtMatmulDescDestroy") &&
           find(desc_set, "cublasLtMatmulDescSetAttribute") &&
           find(layout_create, "cublasLtMatrixLayoutCreate") &&
           find(layout_destroy, "cublasLtMatrixLayoutDestroy") &&
           find(preference_create, "cublasLtMatmulPreferenceCreate") &&
           find(preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
           find(preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
           find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(matmul, "cublasLtMatmul");
  }
};

// What the choice of an algorithm depends on.
struct CublasLt::Key {
  int64_t x_stride_row;
  int32_t rows, in_features, out_features;
  DType dtype, out_dtype;
  uint32_t alignment[4];  // of weight, x, residual and out
  bool bias, residual;
  auto operator<=>(const Key&) const = default;
};

// Row-major out = x * weight^T is column-major out = weight^T * x, which is what cuBLAS computes: A
// is the weight [in_features, out_features], transposed, and B is x [in_features, rows].
struct CublasLt::Plan {
  Api* api;
  void* desc = nullptr;
  void* a = nullptr;
  void* b = nullptr;
  void* d = nullptr;
  Algorithm algorithm{};
  bool usable = false;

  explicit Plan(Api* library) : api(library) {}
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (desc != nullptr) api->desc_destroy(desc);
    for (void* layout : {a, b, d})
      if (layout != nullptr) api->layout_destroy(layout);
  }

  bool set_bias(const void* bias) const {
    return api->desc_set(desc, kBiasPointer, &bias, sizeof bias) == kSuccess;
  }

  bool prepare(void* handle, const Key& key, const void* bias) {
    const int type = data_type(key.dtype), out_type = data_type(key.out_dtype);
    const uint64_t k = key.in_features, n = key.out_features, m = key.rows;
    if (api->desc_create(&desc, kCompute32F, CUDA_R_32F) != kSuccess ||
        api->desc_set(desc, kTransA, &kTranspose, sizeof kTranspose) != kSuccess ||
        api->layout_create(&a, type, k, n, key.in_features) != kSuccess ||
        api->layout_create(&b, type, k, m, key.x_stride_row) != kSuccess ||
        api->layout_create(&d, out_type, n, m, key.out_features) != kSuccess)
      return false;
    if (key.bias &&
        (api->desc_set(desc, kEpilogue, &kEpilogueBias, sizeof kEpilogueBias) != kSuccess ||
         !set_bias(bias)))
      return false;
    void* preference = nullptr;
    if (api->preference_create(&preference) != kSuccess) return false;
    bool good = api->preference_set(preference, kMaxWorkspace, &kSplitSpaceBytes,
                                    sizeof kSplitSpaceBytes) == kSuccess &&
                api->preference_set(preference, kReductionSchemes, &kReduceInComputeType,
                                    sizeof kReduceInComputeType) == kSuccess;
    for (int i = 0; i < 4; ++i)
      good = good && api->preference_set(preference, kAlignmentA + i, &key.alignment[i],
                                         sizeof key.alignment[i]) == kSuccess;
    Heuristic best;
    int found = 0;
    good = good &&
           api->heuristic(handle, desc, a, b, d, d, preference, 1, &best, &found) == kSuccess &&
           found > 0 && best.state == kSuccess;
    api->preference_destroy(preference);
    if (good) algorithm = best.algorithm;
    return good;
  }
};

CublasLt::CublasLt() : api_(std::make_unique<Api>()) {}

CublasLt::~CublasLt() {
  plans_.clear();
  cudaFree(split_space_);
  if (handle_ != nullptr) api_->destroy(handle_);
  // The library stays loaded: it may have registered what runs at exit.
}

std::unique_ptr<CublasLt> CublasLt::open() {
  const char* wanted = std::getenv("FLASH_GQA_CUBLASLT");
  if (wanted != nullptr && std::strcmp(wanted, "off") == 0) return nullptr;
  std::unique_ptr<CublasLt> lt(new CublasLt);
  if (!lt->api_->load() || lt->api_->create(&lt->handle_) != kSuccess) return nullptr;
  if (cudaMalloc(&lt->split_space_, kSplitSpaceBytes) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  const size_t version = lt->api_->version();  // 130100
  lt->version_ = std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100);
  return lt;
}

const CublasLt::Plan* CublasLt::plan(const LinearParams& params, const void* residual) {
  const Key key{params.x_stride_row,
                params.rows,
                params.in_features,
                params.out_features,
                params.dtype,
                params.out_dtype,
                {alignment_of(params.weight), alignment_of(params.x), alignment_of(residual),
                 alignment_of(params.out)},
                params.bias != nullptr,
                params.residual != nullptr};
  auto found = plans_.find(key);
  if (found == plans_.end()) {
    if (plans_.size() >= kMaxPlans) plans_.clear();
    found = plans_.emplace(key, api_.get()).first;
    found->second.usable = found->second.prepare(handle_, key, params.bias);
  }
  return found->second.usable ? &found->second : nullptr;
}

// Where the residual is out itself, cuBLASLt 13 on Hopper rounds x * weight^T + bias before it adds the
// residual to it in memory, and so rounds twice. A copy takes the residual's place: then the same
// plan with the same operands runs as for a separate out, and gives the same bits.
size_t CublasLt::workspace(const LinearParams& params) {
  if (params.residual == nullptr || params.residual != params.out) return 0;
  return static_cast<size_t>(params.rows) * params.out_features * dtype_bytes(params.out_dtype);
}

bool CublasLt::linear(const LinearParams& params, void* workspace, cudaStream_t stream) {
  if (params.rows == 0 || params.out_features == 0 || params.in_features == 0) return false;
  // Bias and residual have `dtype`; cuBLASLt wants them in the type of the result.
  if (params.dtype != params.out_dtype && (params.bias != nullptr || params.residual != nullptr))
    return false;
  const bool adds = params.residual != nullptr;
  // Where rows are not whole 16-byte units, 31 % of cuBLASLt 13's 16-bit results with a residual are
  // not the sum rounded once (docs/gpu-runs.md).
  const bool whole = params.in_features % 8 == 0 && params.out_features % 8 == 0;
  if (adds && !whole && params.out_dtype != DType::kFloat32) return false;
  const size_t copied = CublasLt::workspace(params);
  const void* residual = copied > 0 ? workspace : adds ? params.residual : params.out;
  const Plan* plan = this->plan(params, residual);
  if (plan == nullptr) return false;
  if (params.bias != nullptr && !plan->set_bias(params.bias)) return false;
  if (copied > 0 && cudaMemcpyAsync(workspace, params.residual, copied, cudaMemcpyDeviceToDevice,
                                    stream) != cudaSuccess)
    return false;
  const float one = 1.0f, zero = 0.0f;
  return api_->matmul(handle_, plan->desc, &one, params.weight, plan->a, params.x, plan->b,
                      adds ? &one : &zero, residual, plan->d, params.out, plan->d, &plan->algorithm,
                      split_space_, kSplitSpaceBytes, stream) == kSuccess;
}

}  // namespace flash_gqa
