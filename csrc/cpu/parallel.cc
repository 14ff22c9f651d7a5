#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "../backend.h"
#include "../machine.h"
#include "../thread.h"

namespace flash_gqa::cpu {
namespace {

constexpr int kMaxThreads = 1024;

int configured_threads() {
  const char* text = std::getenv("FLASH_GQA_THREADS");
  if (text == nullptr || *text == '\0') return std::min(processor_share(), kMaxThreads);
  char* end;
  const long threads = std::strtol(text, &end, 10);
  if (*end != '\0' || threads < 1 || threads > kMaxThreads) {
    throw BackendError("INVALID_ARGUMENT", std::string("FLASH_GQA_THREADS: expected an integer "
                                                       "from 1 to 1024, got '") +
                                               text + "'");
  }
  return static_cast<int>(threads);
}

// One parallel_for. Lives on its caller's stack: it leaves the list before the caller returns.
struct Job {
  Job(int64_t items, const std::function<void(int64_t)>& function) : fn(function), n(items) {}

  const std::function<void(int64_t)>& fn;
  const int64_t n;
  std::atomic<int64_t> next{0};
  std::atomic<int> workers{0};  // that are inside work(); joins happen under Workers::mutex_
  std::mutex error_mutex;
  std::exception_ptr error;

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) {
      try {
        fn(i);
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(n, std::memory_order_relaxed);
      }
    }
  }
  bool open() const { return next.load(std::memory_order_relaxed) < n; }
};

class Workers {
 public:
  explicit Workers(int threads) : threads_(threads) {}

  int threads() const { return threads_; }

  void run(int64_t n, const std::function<void(int64_t)>& fn) {
    Job job(n, fn);
    {
      std::lock_guard lock(mutex_);
      start();
      jobs_.push_back(&job);
    }
    epoch_.fetch_add(1, std::memory_order_release);
    const int64_t helpers = std::min<int64_t>(n - 1, threads_ - 1);
    if (helpers == threads_ - 1) {
      epoch_.notify_all();
    } else {
      for (int64_t i = 0; i < helpers; ++i) epoch_.notify_one();
    }
    job.work();
    {
      std::lock_guard lock(mutex_);
      jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    }
    for (int spins = 0; job.workers.load(std::memory_order_acquire) != 0;) {
      if (spins == kSpins) {
        std::this_thread::yield();
      } else {
        ++spins;
        spin_pause();
      }
    }
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void start() {
    if (started_) return;
    started_ = true;
    try {
      for (int i = 1; i < threads_; ++i) start_thread(&Workers::loop, this).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: the callers work with those there are.
    }
  }

  Job* join() {
    std::lock_guard lock(mutex_);
    for (Job* job : jobs_) {
      if (!job->open()) continue;
      job->workers.fetch_add(1, std::memory_order_relaxed);
      return job;
    }
    return nullptr;
  }

  void loop() {
    for (;;) {
      const uint32_t seen = epoch_.load(std::memory_order_acquire);
      if (Job* job = join()) {
        job->work();
        job->workers.fetch_sub(1, std::memory_order_release);
        continue;
      }
      int spins = 0;
      while (spins < kSpins && epoch_.load(std::memory_order_acquire) == seen) {
        spin_pause();
        ++spins;
      }
      if (spins == kSpins) epoch_.wait(seen, std::memory_order_acquire);
    }
  }

  const int threads_;
  std::mutex mutex_;
  std::vector<Job*> jobs_;
  bool started_ = false;
  std::atomic<uint32_t> epoch_{0};
};

// Leaked on purpose: its threads outlive main() and must never see it destroyed.
Workers& workers() {
  static Workers& instance = *new Workers(configured_threads());
  return instance;
}

}  // namespace

int thread_count() { return workers().threads(); }

void parallel_for(int64_t n, const std::function<void(int64_t)>& fn) {
  if (n <= 0) return;
  if (n == 1 || workers().threads() == 1) {
    for (int64_t i = 0; i < n; ++i) fn(i);
    return;
  }
  workers().run(n, fn);
}

}  // namespace flash_gqa::cpu
