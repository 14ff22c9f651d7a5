// What one Node environment (the main thread, or a worker) holds: devices, memory, graphs.
//
//   id -> Handle -> Block -> Device -> Backend
//
// An id is drawn once per process and never again, so a stale or foreign one finds nothing. A block
// outlives its id while a graph or a load still uses it, and a device outlives its last block.
#pragma once

#include <napi.h>

#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "../backend.h"
#include "completion.h"

namespace flash_gqa::binding {

struct Block;

// What a capture refers to. The finished graph keeps it all, so that a replay never meets memory
// that moved.
struct CaptureMemory {
  std::unordered_set<std::shared_ptr<Block>> blocks;
  // Of those, allocated inside the capture.
  std::unordered_set<const Block*> own;
  // Of those, freed again inside the capture, by size: later operations of the same record may use
  // them, as every replay runs in the same order.
  std::unordered_multimap<size_t, std::shared_ptr<Block>> reusable;
};

struct Device {
  int32_t number;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<CaptureMemory> capture;  // between beginCapture and endCapture
  int32_t loads = 0;                       // loadFile calls under way
};

// Device memory; or host memory that pages move to and from, which no other operation takes.
struct Block : std::enable_shared_from_this<Block> {
  enum class Kind { kDevice, kHost };

  Block(std::shared_ptr<Device> owner, size_t size, Kind kind = Kind::kDevice)
      : device(std::move(owner)),
        bytes(size),
        ptr(kind == Kind::kDevice ? static_cast<char*>(device->backend->allocate(size)) : nullptr),
        host(kind == Kind::kHost ? device->backend->host_buffer(size) : nullptr) {}
  ~Block() {
    if (ptr != nullptr) device->backend->release(ptr, bytes);
  }

  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  const std::shared_ptr<Device> device;  // first: everything else must go before its backend
  const size_t bytes;
  char* const ptr;  // null: host memory
  const std::shared_ptr<HostBuffer> host;
};

struct GraphHandle {
  std::shared_ptr<Device> device;  // first: the graph must go before its backend
  std::unique_ptr<CaptureMemory> memory;
  std::unique_ptr<Graph> graph;
};

class Environment;

// How the finalizer of a memory handle finds its environment. Node runs the last finalizers after
// the cleanup hooks, and after it has freed its own instance data: whoever is last deletes this.
struct Tether {
  Environment* environment;  // null once it is gone
  size_t handles = 0;        // whose finalizers have yet to run
};

class Environment {
 public:
  // Lives until the cleanup hook of its Node environment.
  explicit Environment(Napi::Env env);

  Napi::Env env() const { return env_; }
  Completion& completion() { return completion_; }
  Napi::Value args_array() const { return args_array_.Value(); }
  const double* args() const { return args_; }

  int32_t open_device(std::unique_ptr<Backend> backend);
  void close_device(int32_t number);
  const std::shared_ptr<Device>& device(double number) const;

  // A new live id over `bytes` bytes.
  double add_block(const std::shared_ptr<Device>& device, size_t bytes);
  // The same over host memory.
  double add_host_block(const std::shared_ptr<Device>& device, size_t bytes);
  // Null where the id is not alive. The pointer holds until the next add or free.
  const std::shared_ptr<Block>* find_block(double id) const;
  void free_block(double id);
  Tether* tether() const { return tether_; }
  size_t live_blocks() const { return blocks_.size(); }

  // Keeps a block that an operation uses, if its device is being captured.
  void use(const std::shared_ptr<Block>& block);
  // Memory for one operation; a capture keeps what is recorded.
  std::shared_ptr<Block> take(const std::shared_ptr<Device>& device, size_t bytes);
  // Gives it back, in queue order.
  void give_back(std::shared_ptr<Block> block);

  double add_graph(GraphHandle graph);
  GraphHandle& graph(double id);
  void free_graph(double id) { graphs_.erase(key(id)); }

 private:
  ~Environment();
  static void on_cleanup(void* self);
  static uint64_t key(double id);
  double add(std::shared_ptr<Block> block);
  void adjust_external(int64_t bytes);

  Napi::Env env_;
  Tether* const tether_ = new Tether{this};
  Completion completion_;
  Napi::Reference<Napi::Value> args_array_;
  const double* args_ = nullptr;
  struct DeviceSlot {
    std::shared_ptr<Device> open;    // null once closed
    std::weak_ptr<Device> draining;  // the same device, as long as its queue is not empty
  };
  std::vector<DeviceSlot> devices_;  // by number - 1
  std::unordered_map<uint64_t, std::shared_ptr<Block>> blocks_;
  int64_t live_bytes_ = 0;  // of blocks_
  int64_t told_bytes_ = 0;  // to the garbage collector
  std::unordered_map<uint64_t, GraphHandle> graphs_;
};

constexpr uint32_t kMaxArgs = 512;

// Throws UNSUPPORTED while the device is being captured: `operation` cannot be recorded.
void refuse_in_capture(const Device& device, const char* operation);

}  // namespace flash_gqa::binding
