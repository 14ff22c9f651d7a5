// Threads of ours take no signals: they belong to the threads of Node, and a worker that took one
// would run its handler.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace flash_gqa {

template <typename... Args>
std::thread start_thread(Args&&... args) {
  struct SignalsBlocked {
    sigset_t before;
    SignalsBlocked() {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
  } blocked;
  return std::thread(std::forward<Args>(args)...);
}

}  // namespace flash_gqa
