// A barrier for the threads that share sequences: they meet once a step. Free of torch.
#pragma once

#include <atomic>
#include <cstdint>

namespace fused_lstm::cpu {

class Barrier {
 public:
  explicit Barrier(int64_t expected) : expected_(expected) {}
  // Arrives on behalf of `count` participants and blocks until `expected` participants have
  // arrived. A thread that runs several parts arrives once for all of them. Spins for a few
  // microseconds, then yields the core between polls.
  void arrive_and_wait(int64_t count);

 private:
  const int64_t expected_;
  std::atomic<int64_t> arrived_{0};
  std::atomic<int64_t> generation_{0};
};

}  // namespace fused_lstm::cpu
