#include "plan/kernel.h"

namespace fused_lstm {
namespace {

struct Name {
  Kernel kernel;
  const char* name;
};
constexpr Name kNames[] = {{Kernel::direct, "direct"}, {Kernel::panels, "panels"},
                           {Kernel::block, "block"},   {Kernel::cluster, "cluster"},
                           {Kernel::grid, "grid"},     {Kernel::stepwise, "stepwise"}};

}  // namespace

const char* kernel_name(Kernel kernel) {
  for (const Name& one : kNames) {
    if (one.kernel == kernel) return one.name;
  }
  return "unknown";
}

std::optional<Kernel> kernel_named(std::string_view name) {
  for (const Name& one : kNames) {
    if (name == one.name) return one.kernel;
  }
  return std::nullopt;
}

bool is_gpu_kernel(Kernel kernel) { return kernel != Kernel::direct && kernel != Kernel::panels; }

const char* gemm_name(Gemm gemm) {
  switch (gemm) {
    case Gemm::dot:
      return "dot";
    case Gemm::packed_ahead:
      return "packed_ahead";
    case Gemm::packed_on_use:
      return "packed_on_use";
    case Gemm::transposed:
      return "transposed";
    case Gemm::unpacked:
      return "unpacked";
  }
  return "unknown";
}

}  // namespace fused_lstm
