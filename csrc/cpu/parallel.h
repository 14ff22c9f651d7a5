// One pool of worker threads per process, sized by the machine's real share (affinity, cgroup
// quota, FLASH_GQA_THREADS).
#pragma once

#include <cstdint>
#include <functional>

namespace flash_gqa::cpu {

// Threads that take part in parallel_for, the caller included.
int thread_count();

// Runs fn(i) for every i in [0, n), in any order, and returns when all are done. The calling thread
// takes part. Work is handed out one index at a time, so items may differ in size. Callers on
// several threads share the pool safely.
void parallel_for(int64_t n, const std::function<void(int64_t)>& fn);

}  // namespace flash_gqa::cpu
