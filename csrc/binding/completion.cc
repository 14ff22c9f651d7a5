#include "completion.h"

#include <utility>

#include "errors.h"

namespace flash_gqa::binding {

Completion::Completion(napi_env env) : env_(env) {
  napi_value name;
  if (napi_create_string_utf8(env, "flash-gqa", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr,
                                      on_loop, &gate_->function) != napi_ok) {
    throw BackendError("NATIVE_LOAD", "cannot create the completion of this environment");
  }
  napi_unref_threadsafe_function(env, gate_->function);
}

void Completion::close() {
  std::lock_guard lock(gate_->mutex);
  gate_->closed = true;
}

Completion::Started Completion::start(Napi::Value result, std::shared_ptr<void> keep) {
  napi_deferred deferred;
  napi_value promise;
  napi_ref reference = nullptr;
  if (napi_create_promise(env_, &deferred, &promise) != napi_ok)
    throw BackendError("DEVICE", "cannot create a promise");
  if (!result.IsEmpty()) napi_create_reference(env_, result, 1, &reference);
  Wait* wait = add(deferred, reference, std::move(keep));
  if (told_++ == 0) napi_ref_threadsafe_function(env_, gate_->function);
  return {Napi::Promise(env_, promise), wait};
}

Completion::Wait* Completion::add(napi_deferred deferred, napi_ref result,
                                  std::shared_ptr<void> keep) {
  auto wait = std::unique_ptr<Wait>(new Wait{this, deferred, result, std::move(keep), {}});
  Wait* raw = wait.get();
  waits_.emplace(raw, std::move(wait));
  return raw;
}

WaitCallback Completion::callback(Wait* wait) {
  return [gate = gate_, wait](const WaitStatus& status) {
    std::lock_guard lock(gate->mutex);
    if (gate->closed) return;
    wait->status = status;
    napi_call_threadsafe_function(gate->function, wait, napi_tsfn_nonblocking);
  };
}

// The status of every call is ignored: when the environment is being torn down they fail, and there
// is nobody left to tell.
void Completion::settle(Wait* wait) {
  if (wait->deferred != nullptr) {
    napi_value value = nullptr;
    if (wait->status.code != nullptr) {
      value = make_error(env_, wait->status.code, wait->status.message);
      napi_reject_deferred(env_, wait->deferred, value);
    } else {
      if (wait->result != nullptr) {
        napi_get_reference_value(env_, wait->result, &value);
      } else {
        napi_get_undefined(env_, &value);
      }
      napi_resolve_deferred(env_, wait->deferred, value);
    }
    if (--told_ == 0) napi_unref_threadsafe_function(env_, gate_->function);
  }
  if (wait->result != nullptr) napi_delete_reference(env_, wait->result);
  waits_.erase(wait);
}

void Completion::on_loop(napi_env env, napi_value, void*, void* data) {
  // Without an environment the queue is only being emptied, and the waits are gone already.
  if (env == nullptr) return;
  Wait* wait = static_cast<Wait*>(data);
  wait->owner->settle(wait);
}

}  // namespace flash_gqa::binding
