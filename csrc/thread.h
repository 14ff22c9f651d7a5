// What the threads of the CPU back end share: how they are started, and how they wait a moment.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace flash_gqa {

// How often a thread looks again before it sleeps: the gap between two operations of one decode
// step is shorter than waking a thread takes.
constexpr int kSpins = 2000;

inline void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Signals belong to the threads of Node: one of ours that took one would run its handler.
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
