// Memory in stream order, for one backend. A block that is released may be handed out again at
// once, because its next user is enqueued after its last one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace flash_gqa {

// Where a pool gets its blocks. Called by one thread at a time.
class PoolSource {
 public:
  virtual ~PoolSource() = default;
  virtual void* acquire(size_t bytes) = 0;  // null: there is no room
  // Work that was enqueued earlier may still use the block.
  virtual void release(void* ptr, size_t bytes) = 0;
  virtual int64_t free_bytes() const = 0;
};

class Pool {
 public:
  explicit Pool(PoolSource& source) : source_(source) {}
  ~Pool() { trim(); }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Throws OUT_OF_MEMORY.
  void* allocate(size_t bytes);
  // `bytes` as given to allocate().
  void release(void* ptr, size_t bytes);
  // Gives the cached blocks back to the source.
  void trim();

  int64_t allocated() const;
  int64_t cached() const;

  // The size of the block behind a request: eight classes per doubling, so at most one eighth is
  // lost; large blocks are multiples of 2 MiB.
  static size_t block_bytes(size_t bytes);

 private:
  void trim_locked();

  PoolSource& source_;
  mutable std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> free_;  // by block size
  int64_t allocated_ = 0;
  int64_t cached_ = 0;
};

}  // namespace flash_gqa
