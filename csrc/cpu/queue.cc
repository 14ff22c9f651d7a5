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
    work_.store(true, std::memory_order_release);
  }
  ready_.notify_one();
  thread_.join();
}

void Queue::push(Task task) {
  bool wake;
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    work_.store(true, std::memory_order_release);
    wake = sleeping_;
  }
  if (wake) ready_.notify_one();
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
  std::deque<Task> batch;
  for (;;) {
    for (int i = 0; i < kSpins && !work_.load(std::memory_order_acquire); ++i) spin_pause();
    {
      std::unique_lock lock(mutex_);
      sleeping_ = true;
      ready_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      sleeping_ = false;
      if (tasks_.empty()) return;
      batch.swap(tasks_);
      work_.store(stopping_, std::memory_order_relaxed);
    }
    // Each task is destroyed in its turn: a closure may own memory that the one before it uses.
    for (; !batch.empty(); batch.pop_front())
      if (!abandoned_.load(std::memory_order_relaxed)) execute(batch.front());
  }
}

}  // namespace flash_gqa::cpu
