#include "plan.h"

namespace fused_lstm {
namespace {

// From this many sequences on, reading the panels of the input's weights anew at each step costs
// less than writing and reading its product.
constexpr int64_t min_merged_batch = 8;

// Below this many floating-point operations (about 20 us of one core) waking a second thread
// costs more than it gives.
constexpr int64_t min_parallel_work = 1'000'000;

}  // namespace

Plan make_plan(const Problem& problem) {
  if (problem.cuda) return {Kernel::streamed, 1, false};

  const int64_t work = problem.rows * problem.directions * 8 * problem.hidden * problem.projection;
  const bool parallel = problem.threads > 1 && work >= min_parallel_work;
  int64_t slices = 1;
  if (parallel) {
    const int64_t wanted = (problem.threads + problem.directions - 1) / problem.directions;
    slices = wanted < problem.batch ? wanted : problem.batch;
    if (slices < 1) slices = 1;
  }
  const Kernel kernel = problem.length == 1                         ? Kernel::single_step
                        : problem.batch < min_merged_batch * slices ? Kernel::panels
                                                                    : Kernel::merged;
  return {kernel, slices, parallel && slices * problem.directions > 1};
}

const char* kernel_name(Kernel kernel) {
  switch (kernel) {
    case Kernel::single_step:
      return "single_step";
    case Kernel::panels:
      return "panels";
    case Kernel::merged:
      return "merged";
    case Kernel::streamed:
      return "streamed";
  }
  return "unknown";
}

}  // namespace fused_lstm
