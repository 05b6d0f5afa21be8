// Whether gates divide. Apart from probe.cpp, which needs the kernels for training.
#include "cpu/kernels.h"
#include "cpu/timer.h"
#include "plan/plan.h"

namespace fused_lstm::cpu {

bool divides = false;

double measure_ns(float (*probe)(int64_t times), int64_t times) {
  volatile float sink = 0;
  return quickest_ns(12, [&] { sink = probe(times); });
}

void measure_arithmetic(const Probes& probes, Machine& m) {
  constexpr int64_t times = 400;
  m.vector_bytes = 4 * probes.lanes;
  const double flops = 2.0 * static_cast<double>(probes.lanes * probes.sums * times);
  m.fma_gflops = flops / measure_ns(probes.multiply, times);
  m.division_ns = measure_ns(probes.divide, times) / (4 * times);
}

void settle_division() {
  static const bool settled = [] {
    Machine machine;
    measure_arithmetic(frozen_kernels().probes, machine);
    divides = make_division_plan(machine);
    return true;
  }();
  static_cast<void>(settled);
}

}  // namespace fused_lstm::cpu
