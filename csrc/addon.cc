// The addon's entry point: one Environment per Node environment, and the functions it exports.
#include "binding/environment.h"
#include "binding/errors.h"
#include "binding/functions.h"

namespace flash_gqa::binding {
namespace {

template <Function* call>
void export_function(Napi::Object exports, Environment* environment, const char* name) {
  exports.Set(name,
              Napi::Function::New<&guarded<call, Environment>>(exports.Env(), name, environment));
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  // Owned by the environment's cleanup hook.
  auto* environment = new Environment(env);
  exports.Set("args", environment->args_array());

  export_function<probe_cuda_call>(exports, environment, "probeCuda");
  export_function<open_device>(exports, environment, "openDevice");
  export_function<close_device>(exports, environment, "closeDevice");
  export_function<device_info>(exports, environment, "deviceInfo");
  export_function<memory_info>(exports, environment, "memoryInfo");
  export_function<trim>(exports, environment, "trim");
  export_function<synchronize>(exports, environment, "synchronize");
  export_function<begin_capture>(exports, environment, "beginCapture");
  export_function<end_capture>(exports, environment, "endCapture");
  export_function<abort_capture>(exports, environment, "abortCapture");
  export_function<replay>(exports, environment, "replay");
  export_function<free_graph>(exports, environment, "freeGraph");

  export_function<allocate>(exports, environment, "allocate");
  export_function<allocate_host>(exports, environment, "allocateHost");
  export_function<free_memory>(exports, environment, "free");
  export_function<live_buffers>(exports, environment, "liveBuffers");
  export_function<upload>(exports, environment, "upload");
  export_function<copy>(exports, environment, "copy");
  export_function<fill>(exports, environment, "fill");
  export_function<convert>(exports, environment, "convert");
  export_function<scatter>(exports, environment, "scatter");
  export_function<read>(exports, environment, "read");
  export_function<load_file>(exports, environment, "loadFile");

  export_function<attention>(exports, environment, "attention");
  export_function<explain_attention>(exports, environment, "explainAttention");
  export_function<rope_rows>(exports, environment, "ropeRows");
  export_function<rope_apply>(exports, environment, "ropeApply");
  export_function<append_kv>(exports, environment, "appendKv");
  export_function<repeat_kv>(exports, environment, "repeatKv");
  export_function<slice_window>(exports, environment, "sliceWindow");
  export_function<merge_states>(exports, environment, "mergeStates");
  export_function<copy_pages>(exports, environment, "copyPages");
  export_function<move_pages>(exports, environment, "movePages");

  export_function<embedding>(exports, environment, "embedding");
  export_function<linear>(exports, environment, "linear");
  export_function<rms_norm>(exports, environment, "rmsNorm");
  export_function<add>(exports, environment, "add");
  export_function<silu_mul>(exports, environment, "siluMul");
  export_function<top_k>(exports, environment, "topK");
  export_function<sample>(exports, environment, "sample");
  export_function<gather_rows>(exports, environment, "gatherRows");
  return exports;
}

}  // namespace

NODE_API_MODULE(flash_gqa, init)

}  // namespace flash_gqa::binding
