// The kernel that GPU layers run where they can: FUSED_LSTM_KERNEL, or what
// fused_lstm.use_kernel has set since, for the whole process: backward runs in other threads.
#pragma once

#include <optional>

#include "plan/plan.h"

namespace fused_lstm {

std::optional<Kernel> kernel_override();
void set_kernel_override(std::optional<Kernel> kernel);

}  // namespace fused_lstm
