#include "plan.h"

#include <algorithm>

namespace fused_lstm {
namespace {

// Taking both products in one pass saves writing and reading that of the input, but reads the
// input's weights anew at each step. It pays where a core's own cache keeps the panels of both
// weights (1 MB of float32), or where enough sequences share what is read; measured on B 16 to 128,
// H 64 to 1024 (benchmarks/NOTES.md); that 8 sequences suffice is not measured.
constexpr int64_t min_merged_batch = 8;
constexpr int64_t max_cached_weights = 262'144;
constexpr int64_t min_shared_batch = 96;

// Below this many floating-point operations (an estimated 10 us of one core) waking a second
// thread is taken to cost more than it gives; not measured.
constexpr int64_t min_parallel_work = 1'000'000;

}  // namespace

Plan make_plan(const Problem& problem) {
  if (problem.cuda) return {Kernel::streamed, 1, false};

  const int64_t work = problem.rows * problem.directions * 8 * problem.hidden * problem.projection;
  const int64_t threads = work >= min_parallel_work ? problem.threads : 1;
  const int64_t wanted = (threads + problem.directions - 1) / problem.directions;
  const int64_t slices = std::max<int64_t>(1, std::min(wanted, problem.batch));
  const bool parallel = threads > 1 && slices * problem.directions > 1;
  if (problem.length == 1) return {Kernel::single_step, slices, parallel};

  const int64_t batch = problem.batch / slices;
  const int64_t weights = 4 * problem.hidden * (problem.input + problem.projection);
  const bool merged =
      batch >= min_shared_batch || (batch >= min_merged_batch && weights <= max_cached_weights);
  return {merged ? Kernel::merged : Kernel::panels, slices, parallel};
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
