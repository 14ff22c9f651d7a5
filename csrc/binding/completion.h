// Promises that native threads settle: one persistent threadsafe function per environment, which
// keeps the loop alive only while a wait is under way.
#pragma once

#include <napi.h>

#include <memory>
#include <mutex>
#include <unordered_map>

#include "../backend.h"

namespace flash_gqa::binding {

class Completion {
 public:
  // Its owner adds its environment cleanup hook after this, so that the hook runs first (they run
  // last in, first out) and finds the threadsafe function alive.
  explicit Completion(napi_env env);

  // Nothing is posted after this, whatever threads still run. The threadsafe function is Node's to
  // close.
  void close();

  // A promise for what `begin` starts and reports through the callback it is given: `result` (or
  // undefined), or an Error that carries a code. `keep` is dropped on the loop's thread once the
  // wait has ended.
  template <typename Begin>
  Napi::Value wait(Napi::Value result, std::shared_ptr<void> keep, Begin&& begin) {
    Started started = start(result, std::move(keep));
    try {
      begin(callback(started.wait));
    } catch (const BackendError& error) {
      started.wait->status = {error.code, error.what()};
      settle(started.wait);
    }
    return started.promise;
  }

  // A wait that nobody is told about, and that does not keep the loop alive.
  template <typename Begin>
  void wait_silently(std::shared_ptr<void> keep, Begin&& begin) {
    Wait* wait = add(nullptr, nullptr, std::move(keep));
    try {
      begin(callback(wait));
    } catch (const BackendError&) {
      settle(wait);
    }
  }

 private:
  struct Wait {
    Completion* owner;       // touched on the loop's thread only
    napi_deferred deferred;  // null: silent
    napi_ref result;         // null: undefined
    std::shared_ptr<void> keep;
    WaitStatus status;
  };

  struct Started {
    Napi::Promise promise;
    Wait* wait;
  };

  Started start(Napi::Value result, std::shared_ptr<void> keep);
  Wait* add(napi_deferred deferred, napi_ref result, std::shared_ptr<void> keep);
  WaitCallback callback(Wait* wait);
  void settle(Wait* wait);
  static void on_loop(napi_env env, napi_value, void*, void* data);

  // What callbacks hold: a wait may be gone by the time its callback comes, but not this.
  struct Gate {
    std::mutex mutex;
    napi_threadsafe_function function = nullptr;
    bool closed = false;
  };

  napi_env env_;
  const std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  // Owns every wait until it is settled: one whose callback never comes dies with the environment.
  std::unordered_map<Wait*, std::unique_ptr<Wait>> waits_;
  int told_ = 0;  // waits with a promise
};

}  // namespace flash_gqa::binding
