#include "page_moves.h"

#include <cstdlib>
#include <cstring>

#include "../machine.h"
#include "parallel.h"

namespace flash_gqa::cpu {
namespace {

class HeapBuffer : public HostBuffer {
 public:
  ~HeapBuffer() override { std::free(data_); }

  // Null where the machine has not got them: it would hand out the addresses all the same, and end
  // the process when they are used.
  char* reserve(size_t bytes) {
    if (data_ == nullptr && static_cast<int64_t>(bytes) <= host_memory().available)
      data_ = static_cast<char*>(std::malloc(bytes));
    return data_;
  }

 private:
  char* data_ = nullptr;
};

}  // namespace

std::shared_ptr<HostBuffer> host_buffer(size_t) { return std::make_shared<HeapBuffer>(); }

WaitStatus move_pages(const MovePagesParams& params) {
  const size_t bytes = params.host_bytes();
  char* const host = static_cast<HeapBuffer*>(params.host)->reserve(bytes);
  if (host == nullptr && bytes > 0) return {"OUT_OF_MEMORY", no_host_memory(bytes)};
  const int64_t num_runs = static_cast<int64_t>(params.runs.size());
  parallel_for(num_runs * params.num_layers, [&](int64_t i) {
    const int64_t layer = i / num_runs;
    const PageRun& run = params.runs[static_cast<size_t>(i % num_runs)];
    char* const page = params.pool + (layer * params.num_pages + run.page) * params.page_bytes;
    char* const other = host + (layer * params.host_pages + run.host_page) * params.page_bytes;
    std::memcpy(params.to_host ? other : page, params.to_host ? page : other,
                static_cast<size_t>(run.count * params.page_bytes));
  });
  return {};
}

}  // namespace flash_gqa::cpu
