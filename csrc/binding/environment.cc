#include "environment.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "errors.h"

namespace flash_gqa::binding {
namespace {

// 2^53 ids: at a million a second they last 285 years.
std::atomic<uint64_t> next_id{1};

}  // namespace

Environment::Environment(Napi::Env env) : env_(env), completion_(env) {
  const auto array = Napi::Float64Array::New(env, kMaxArgs);
  args_ = array.Data();
  args_array_ = Napi::Reference<Napi::Value>::New(array, 1);
  args_array_.SuppressDestruct();  // the reference dies with the environment
  napi_add_env_cleanup_hook(env, on_cleanup, this);
}

Environment::~Environment() {
  tether_->environment = nullptr;
  if (tether_->handles == 0) delete tether_;
  completion_.close();
  for (const DeviceSlot& slot : devices_)
    if (const auto device = slot.draining.lock()) device->backend->abandon();
}

void Environment::on_cleanup(void* self) { delete static_cast<Environment*>(self); }

uint64_t Environment::key(double id) {
  return id >= 1 && id <= 9007199254740991.0 ? static_cast<uint64_t>(id) : 0;
}

int32_t Environment::open_device(std::unique_ptr<Backend> backend) {
  const int32_t number = static_cast<int32_t>(devices_.size()) + 1;
  std::shared_ptr<Device> device(new Device{number, std::move(backend), nullptr, 0});
  devices_.push_back({device, device});
  return number;
}

const std::shared_ptr<Device>& Environment::device(double number) const {
  if (!(number >= 1 && number <= static_cast<double>(devices_.size())))
    fail_invalid("device: no such device in this thread");
  const auto& device = devices_[static_cast<size_t>(number) - 1].open;
  if (device == nullptr) throw BackendError("DISPOSED", "device: it is disposed");
  return device;
}

void Environment::close_device(int32_t number) {
  const std::shared_ptr<Device> device = std::exchange(devices_[number - 1].open, nullptr);
  if (device->capture != nullptr) {
    device->backend->abort_capture();
    device->capture = nullptr;
  }
  std::erase_if(graphs_, [&](const auto& entry) { return entry.second.device == device; });
  int64_t freed = 0;
  std::erase_if(blocks_, [&](const auto& entry) {
    if (entry.second->device != device) return false;
    freed += static_cast<int64_t>(entry.second->bytes);
    return true;
  });
  adjust_external(-freed);
  // The device goes when its queue is empty, not here: that would block the loop.
  completion_.wait_silently(
      device, [&](WaitCallback done) { device->backend->synchronize(std::move(done)); });
}

double Environment::add_block(const std::shared_ptr<Device>& device, size_t bytes) {
  return add(take(device, bytes));
}

double Environment::add_host_block(const std::shared_ptr<Device>& device, size_t bytes) {
  return add(std::make_shared<Block>(device, bytes, Block::Kind::kHost));
}

double Environment::add(std::shared_ptr<Block> block) {
  const uint64_t id = next_id.fetch_add(1, std::memory_order_relaxed);
  adjust_external(static_cast<int64_t>(block->bytes));
  blocks_.emplace(id, std::move(block));
  return static_cast<double>(id);
}

const std::shared_ptr<Block>* Environment::find_block(double id) const {
  const auto found = blocks_.find(key(id));
  return found == blocks_.end() ? nullptr : &found->second;
}

void Environment::free_block(double id) {
  const auto found = blocks_.find(key(id));
  if (found == blocks_.end()) return;
  auto block = std::move(found->second);
  blocks_.erase(found);
  adjust_external(-static_cast<int64_t>(block->bytes));
  give_back(std::move(block));
}

void Environment::use(const std::shared_ptr<Block>& block) {
  if (block->device->capture != nullptr) block->device->capture->blocks.insert(block);
}

std::shared_ptr<Block> Environment::take(const std::shared_ptr<Device>& device, size_t bytes) {
  CaptureMemory* capture = device->capture.get();
  if (capture == nullptr) return std::make_shared<Block>(device, bytes);
  const auto spare = capture->reusable.find(bytes);
  if (spare != capture->reusable.end()) {
    auto block = std::move(spare->second);
    capture->reusable.erase(spare);
    return block;
  }
  auto block = std::make_shared<Block>(device, bytes);
  capture->own.insert(block.get());
  capture->blocks.insert(block);
  return block;
}

void Environment::give_back(std::shared_ptr<Block> block) {
  CaptureMemory* capture = block->device->capture.get();
  if (capture != nullptr && capture->own.count(block.get()) != 0)
    capture->reusable.emplace(block->bytes, std::move(block));
}

double Environment::add_graph(GraphHandle graph) {
  const uint64_t id = next_id.fetch_add(1, std::memory_order_relaxed);
  graphs_.emplace(id, std::move(graph));
  return static_cast<double>(id);
}

GraphHandle& Environment::graph(double id) {
  const auto found = graphs_.find(key(id));
  if (found == graphs_.end())
    throw BackendError("DISPOSED", "graph: it is disposed, or belongs to another thread");
  return found->second;
}

// V8 answers growth with a collection, milliseconds in the middle of a step: it is told of what is worth
// one.
void Environment::adjust_external(int64_t bytes) {
  constexpr int64_t kWorthACollection = int64_t{1} << 30;
  live_bytes_ += bytes;
  const int64_t untold = live_bytes_ - told_bytes_;
  if (std::abs(untold) < kWorthACollection && live_bytes_ != 0) return;
  told_bytes_ = live_bytes_;
  int64_t total;
  napi_adjust_external_memory(env_, untold, &total);
}

void refuse_in_capture(const Device& device, const char* operation) {
  if (device.capture == nullptr) return;
  throw BackendError(
      "UNSUPPORTED",
      std::string(operation) + ": it cannot be captured: call it before or after device.capture()");
}

}  // namespace flash_gqa::binding
