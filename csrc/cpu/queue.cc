#include "queue.h"

#include <new>
#include <utility>

#include "../fault.h"
#include "../thread.h"

namespace flash_gqa::cpu {

Queue::Queue() : thread_(start_thread(&Queue::loop, this)) {}

Queue::~Queue() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_one();
  thread_.join();
}

void Queue::push(Task task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  ready_.notify_one();
}

void Queue::execute(const Task& task) {
  WaitStatus status;
  const std::string operation = task.operation;
  try {
    task.run();
  } catch (const BackendError& error) {
    status = {error.code, operation + ": " + error.what()};
  } catch (const std::bad_alloc&) {
    status = {"OUT_OF_MEMORY", operation + ": no host memory for scratch"};
  } catch (const std::exception& error) {
    status = {"DEVICE", operation + ": " + error.what()};
  }
  const int32_t fault = __atomic_exchange_n(&fault_, kFaultNone, __ATOMIC_RELAXED);
  if (status.code == nullptr && fault != kFaultNone)
    status = {"INVALID_ARGUMENT", fault_message(operation, fault)};
  if (error_.code == nullptr) error_ = std::move(status);
}

WaitStatus Queue::take_error() { return std::exchange(error_, WaitStatus{}); }

void Queue::loop() {
  for (;;) {
    Task task;
    {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    if (!abandoned_.load(std::memory_order_relaxed)) execute(task);
  }
}

}  // namespace flash_gqa::cpu
