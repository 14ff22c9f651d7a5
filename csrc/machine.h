// The share of this machine that the process may use: affinity, control groups, memory.
#pragma once

#include <cstdint>
#include <string>

namespace flash_gqa {

// Processors: the affinity mask, cut down by the CPU quota of the control groups. At least 1.
int processor_share();

// "AMD EPYC 9354 32-Core Processor"
std::string processor_name();

// Bytes, host memory. `available` is what can be touched without swapping or being killed.
struct HostMemory {
  int64_t total;
  int64_t available;
};
HostMemory host_memory();

// Bytes of this process that are resident.
int64_t resident_bytes();

}  // namespace flash_gqa
