// Errors on their way to JavaScript: an Error with a `code`, made into a GqaError by lib/native.ts.
#pragma once

#include <napi.h>

#include <cmath>
#include <string>

#include "../backend.h"

namespace flash_gqa::binding {

inline napi_value make_error(napi_env env, const char* code, const std::string& message) {
  napi_value code_value = nullptr, text = nullptr, error = nullptr;
  napi_create_string_utf8(env, code, NAPI_AUTO_LENGTH, &code_value);
  napi_create_string_utf8(env, message.data(), message.size(), &text);
  napi_create_error(env, code_value, text, &error);
  return error;
}

[[noreturn]] inline void fail_invalid(const std::string& message) {
  throw BackendError("INVALID_ARGUMENT", message);
}

constexpr int64_t kMaxSafeInteger = 9007199254740991;

// A number as JavaScript prints it.
inline std::string number_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  const bool whole =
      value == std::trunc(value) && std::fabs(value) <= static_cast<double>(kMaxSafeInteger);
  return whole ? std::to_string(static_cast<int64_t>(value)) : std::to_string(value);
}

// The function that JavaScript calls: runs `call` and turns what it throws into an Error with a
// code. No C++ exception reaches Node.
template <auto call, typename Environment>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return call(*static_cast<Environment*>(info.Data()), info);
  } catch (const BackendError& error) {
    napi_throw_error(info.Env(), error.code, error.what());
  } catch (const std::bad_alloc&) {
    napi_throw_error(info.Env(), "OUT_OF_MEMORY", "no host memory");
  } catch (const Napi::Error&) {
    throw;  // already a JavaScript exception
  } catch (const std::exception& error) {
    napi_throw_error(info.Env(), "DEVICE", error.what());
  }
  return {};
}

}  // namespace flash_gqa::binding
