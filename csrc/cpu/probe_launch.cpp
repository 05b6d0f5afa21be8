// The machine with what its threads cost, which only ATen's parallel loop can tell.
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>

#include "cpu/kernels.h"
#include "device/device.h"

namespace fused_lstm {
namespace {

// Of a few runs, for others can only make a run slower.
template <class Body>
double quickest_us(const Body& body) {
  double best = 1e6;
  for (int run = 0; run < 10; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double, std::micro> taken =
        std::chrono::steady_clock::now() - begin;
    best = std::min(best, taken.count());
  }
  return best;
}

Machine measure_threads() {
  Machine m = cpu::measured_machine();
  const int64_t threads = at::get_num_threads();
  const double loop =
      quickest_us([&] { at::parallel_for(0, threads, 1, [](int64_t, int64_t) {}); });
  double barrier = m.barrier_us;
#if AT_PARALLEL_OPENMP
  constexpr int meetings = 20;
  const double all = quickest_us([&] {
    cpu::Barrier one(threads);
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int i = 0; i < meetings; ++i) one.arrive_and_wait(end - begin);
    });
  });
  barrier = (all - loop) / meetings;
#endif
  // Bounded, for threads may just have been awake, or another process busy on a core.
  m.parallel_us = std::clamp(loop, 4.0, 20.0);
  m.barrier_us = std::clamp(barrier, 0.1, 2.0);
  cpu::apply_given_figures(m);
  return m;
}

}  // namespace

const Machine& cpu_machine() {
  if (at::get_num_threads() == 1) return cpu::measured_machine();
  static const Machine with_threads = measure_threads();
  return with_threads;
}

}  // namespace fused_lstm
