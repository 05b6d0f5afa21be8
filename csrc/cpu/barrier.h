// Where threads that share sequences wait for one another after each step. Free of torch.
#pragma once

#include <atomic>
#include <cstdint>

namespace fused_lstm {
namespace cpu {

class Barrier {
 public:
  explicit Barrier(int64_t expected) : expected_(expected) {}
  // Returns when calls of all in all `expected` weight have been made. Spins for a few
  // microseconds, then yields the core to whoever else wants it.
  void wait(int64_t weight);

 private:
  const int64_t expected_;
  std::atomic<int64_t> arrived_{0};
  std::atomic<int64_t> generation_{0};
};

}  // namespace cpu
}  // namespace fused_lstm
