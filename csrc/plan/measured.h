// Kernels that were measured to be the fastest, by device and problem: fused_lstm.autotune fills
// the table, and GPU layers run what it has where that can run. For the whole process: backward
// runs in other threads. Free of torch.
#pragma once

#include <optional>

#include "plan/plan.h"

namespace fused_lstm {

// What is known for `problem` on GPU `device`. Lengths within a factor of two are one problem.
std::optional<Kernel> measured_kernel(int device, const Problem& problem);
void set_measured_kernel(int device, const Problem& problem, Kernel kernel);
void forget_measured_kernels();

}  // namespace fused_lstm
