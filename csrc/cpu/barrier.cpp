#include "cpu/barrier.h"

#include <thread>

namespace fused_lstm::cpu {
namespace {

constexpr int kSpins = 200;

void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

}  // namespace

void Barrier::arrive_and_wait(int64_t count) {
  const int64_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(count, std::memory_order_acq_rel) + count == expected_) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int i = 0; generation_.load(std::memory_order_acquire) == generation; ++i) {
    if (i < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace fused_lstm::cpu
