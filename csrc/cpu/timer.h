// Measures the time of a short loop. Free of torch.
#pragma once

#include <algorithm>
#include <chrono>

namespace fused_lstm::cpu {

// Nanoseconds of the quickest of a few runs: others can only make a run slower.
template <class Body>
double quickest_ns(int runs, const Body& body) {
  using Clock = std::chrono::steady_clock;
  double best = 1e18;
  for (int run = 0; run < runs; ++run) {
    const Clock::time_point begin = Clock::now();
    body();
    const std::chrono::duration<double, std::nano> taken = Clock::now() - begin;
    best = std::min(best, taken.count());
  }
  return std::max(best, 1.0);
}

}  // namespace fused_lstm::cpu
