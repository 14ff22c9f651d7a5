// Pages between a cache's pool and memory beside it. On the host that is one memory in two places: a
// cache can be offloaded here too, so that what is tested without a GPU is what runs on one.
#pragma once

#include "../backend.h"

namespace flash_gqa::cpu {

std::shared_ptr<HostBuffer> host_buffer(size_t bytes);

// On the queue's thread.
WaitStatus move_pages(const MovePagesParams& params);

}  // namespace flash_gqa::cpu
