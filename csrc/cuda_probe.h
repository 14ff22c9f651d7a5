#pragma once

#include <cstdint>
#include <string>

namespace flash_gqa {

// Why this build has no kernels for an existing device; empty where it has.
std::string unusable_reason(int32_t index);

}  // namespace flash_gqa
