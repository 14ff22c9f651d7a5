// Chooses the instruction set once, at the first call.
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"
#include "micro.h"

namespace flash_gqa::cpu {

namespace portable {
extern const Micro kMicro;
}

#if defined(__x86_64__)
namespace avx2 {
extern const Micro kMicro;
}
namespace avx512 {
extern const Micro kMicro;
}
#endif

namespace {

struct Isa {
  const char* name;
  const Micro* micro;
};

#if defined(__x86_64__)
// clang 14's __builtin_cpu_supports does not know this one.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

// FLASH_GQA_ISA=portable|avx2 lowers the choice, for tests and comparisons; it never raises it.
Isa choose() {
#if defined(__x86_64__)
  const char* limit = std::getenv("FLASH_GQA_ISA");
  const bool portable_only = limit != nullptr && std::strcmp(limit, "portable") == 0;
  const bool at_most_avx2 = limit != nullptr && std::strcmp(limit, "avx2") == 0;
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx512 && !portable_only && !at_most_avx2) return {"avx512", &avx512::kMicro};
  if (has_avx2 && !portable_only) return {"avx2", &avx2::kMicro};
#endif
  return {"portable", &portable::kMicro};
}

const Isa& chosen() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

const Micro& micro() { return *chosen().micro; }
const char* isa_name() { return chosen().name; }

}  // namespace flash_gqa::cpu
