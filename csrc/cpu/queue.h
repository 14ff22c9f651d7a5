// The in-order queue of one CPU backend: closures that run one after another on a thread of its
// own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "../backend.h"

namespace flash_gqa::cpu {

struct Task {
  const char* operation;  // named by the error that it may cause
  std::function<void()> run;
};

class Queue {
 public:
  Queue();
  ~Queue();  // runs what is left, unless abandoned

  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  void push(Task task);
  // Tasks that have not begun are destroyed in their turn, not run.
  void abandon() { abandoned_.store(true, std::memory_order_relaxed); }

  // On the queue's thread: runs a task, and keeps its error if it is the first since take_error().
  void execute(const Task& task);
  // On the queue's thread: how everything since the last call went.
  WaitStatus take_error();

  // Set by kernels that meet bad lengths or ids; read and cleared after each task.
  int32_t* fault_word() { return &fault_; }

 private:
  void loop();

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Task> tasks_;
  bool stopping_ = false;
  bool sleeping_ = false;
  std::atomic<bool> work_{false};  // tasks_ is not empty, or stopping_: what spinning looks at
  std::atomic<bool> abandoned_{false};
  WaitStatus error_;
  int32_t fault_ = kFaultNone;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace flash_gqa::cpu
