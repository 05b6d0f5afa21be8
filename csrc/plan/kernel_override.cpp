#include "plan/kernel_override.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fused_lstm {
namespace {

std::optional<Kernel> from_environment() {
  const char* const name = std::getenv("FUSED_LSTM_KERNEL");
  if (!name || !*name) return std::nullopt;
  const std::optional<Kernel> kernel = kernel_named(name);
  if (!kernel || !is_gpu_kernel(*kernel)) {
    throw std::invalid_argument(std::string("FUSED_LSTM_KERNEL is '") + name +
                                "', must be block, cluster, grid or stepwise");
  }
  return kernel;
}

std::atomic<std::optional<Kernel>>& current() {
  static std::atomic<std::optional<Kernel>> kernel = from_environment();
  return kernel;
}

}  // namespace

std::optional<Kernel> kernel_override() { return current(); }

void set_kernel_override(std::optional<Kernel> kernel) { current() = kernel; }

}  // namespace fused_lstm
