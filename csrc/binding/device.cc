// Devices, waits and graphs.
#include "functions.h"
#include "values.h"

namespace flash_gqa::binding {

Napi::Value probe_cuda_call(Environment& environment, const Napi::CallbackInfo&) {
  const CudaProbe probe = probe_cuda();
  auto result = Napi::Object::New(environment.env());
  result["compiled"] = probe.compiled;
  result["usable"] = probe.usable;
  result["deviceCount"] = probe.device_count;
  result["driverVersion"] = probe.driver_version;
  result["runtimeVersion"] = probe.runtime_version;
  result["error"] = probe.error;
  result["reason"] = probe.reason;
  result["builtArchs"] = probe.built_archs;
  return result;
}

Napi::Value open_device(Environment& environment, const Napi::CallbackInfo& info) {
  const std::string kind = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
  const auto index = static_cast<int32_t>(integer_at(info, 1, "device index", 0, INT32_MAX));
  std::unique_ptr<Backend> backend;
  if (kind == "cpu") {
    if (index != 0) fail_invalid("openDevice: there is one CPU device, cpu");
    backend = make_cpu_backend();
  } else if (kind == "cuda") {
    backend = make_cuda_backend(index);
  } else {
    fail_invalid("openDevice: expected cpu or cuda, got '" + kind + "'");
  }
  return Napi::Number::New(environment.env(), environment.open_device(std::move(backend)));
}

Napi::Value close_device(Environment& environment, const Napi::CallbackInfo& info) {
  environment.close_device(environment.device(number_at(info, 0, "device"))->number);
  return environment.env().Undefined();
}

Napi::Value device_info(Environment& environment, const Napi::CallbackInfo& info) {
  const DeviceInfo device = environment.device(number_at(info, 0, "device"))->backend->info();
  auto result = Napi::Object::New(environment.env());
  result["kind"] = device.kind;
  result["index"] = device.index;
  result["name"] = device.name;
  result["arch"] = device.arch;
  result["parallelism"] = device.parallelism;
  result["linear"] = device.linear;
  result["driverVersion"] = device.driver_version;
  result["runtimeVersion"] = device.runtime_version;
  result["sharedMemoryBytes"] = static_cast<double>(device.shared_memory_bytes);
  return result;
}

Napi::Value memory_info(Environment& environment, const Napi::CallbackInfo& info) {
  const MemoryInfo memory = environment.device(number_at(info, 0, "device"))->backend->memory();
  auto result = Napi::Object::New(environment.env());
  result["total"] = static_cast<double>(memory.total);
  result["free"] = static_cast<double>(memory.free);
  result["allocated"] = static_cast<double>(memory.allocated);
  result["cached"] = static_cast<double>(memory.cached);
  return result;
}

Napi::Value trim(Environment& environment, const Napi::CallbackInfo& info) {
  environment.device(number_at(info, 0, "device"))->backend->trim();
  return environment.env().Undefined();
}

Napi::Value synchronize(Environment& environment, const Napi::CallbackInfo& info) {
  const auto& device = environment.device(number_at(info, 0, "device"));
  refuse_in_capture(*device, "synchronize");
  return environment.completion().wait(
      {}, device, [&](WaitCallback done) { device->backend->synchronize(std::move(done)); });
}

Napi::Value begin_capture(Environment& environment, const Napi::CallbackInfo& info) {
  const auto& device = environment.device(number_at(info, 0, "device"));
  refuse_in_capture(*device, "beginCapture");
  if (device->loads > 0) {
    throw BackendError("BUSY",
                       "beginCapture: " + std::to_string(device->loads) +
                           " files are still being loaded on this device: await them first");
  }
  device->backend->begin_capture();
  device->capture = std::make_unique<CaptureMemory>();
  return environment.env().Undefined();
}

Napi::Value end_capture(Environment& environment, const Napi::CallbackInfo& info) {
  const auto& device = environment.device(number_at(info, 0, "device"));
  if (device->capture == nullptr) fail_invalid("endCapture: the device is not being captured");
  auto memory = std::move(device->capture);  // whatever happens, the capture is over
  auto graph = device->backend->end_capture();
  auto result = Napi::Object::New(environment.env());
  result["id"] = environment.add_graph({device, std::move(memory), std::move(graph)});
  return result;
}

Napi::Value abort_capture(Environment& environment, const Napi::CallbackInfo& info) {
  const auto& device = environment.device(number_at(info, 0, "device"));
  if (device->capture != nullptr) {
    const auto memory = std::move(device->capture);
    device->backend->abort_capture();
  }
  return environment.env().Undefined();
}

Napi::Value replay(Environment& environment, const Napi::CallbackInfo& info) {
  GraphHandle& graph = environment.graph(number_at(info, 0, "graph"));
  refuse_in_capture(*graph.device, "replay");
  graph.device->backend->replay(*graph.graph);
  return environment.env().Undefined();
}

Napi::Value free_graph(Environment& environment, const Napi::CallbackInfo& info) {
  environment.free_graph(number_at(info, 0, "graph"));
  return environment.env().Undefined();
}

}  // namespace flash_gqa::binding
