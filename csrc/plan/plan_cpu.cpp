#include <algorithm>

#include "plan/plan.h"

namespace fused_lstm {
namespace {

// So few rows, for so few steps, read a weight where it lies before it would be packed. One row
// does always: it takes each number once, wherever that lies (benchmarks/NOTES.md).
constexpr int64_t kMaxDirectRows = 3;
constexpr int64_t kMaxDirectSteps = 8;

// Rows of input that share one reading of weight_ih.
constexpr int64_t kChunkRows = 96;

// The borders below were measured on two cores (benchmarks/NOTES.md).
// Below this many floating-point operations waking a second thread costs more than it gives.
constexpr int64_t kMinParallelWork = 500'000;
// The same of one step of one part, for threads that wait for one another at each step. Half of it
// would still pay on idle cores; but one that is busy makes the other wait.
constexpr int64_t kMinSharedStep = 100'000;
// Recurrent weights (numbers) that fit the cache of one core: each thread then takes its own
// sequences, with all weights, if it has enough of them to fill a tile.
constexpr int64_t kMaxCachedWeights = 262'144;
constexpr int64_t kMinBatchSlice = 6;
// Hidden units of a part, at least.
constexpr int64_t kMinUnitSlice = 64;

// A weight of so many numbers that is used once is not packed, if the rows that it meets fill so
// much of their lanes and are not so many that packing is little beside the product.
constexpr int64_t kMinTransposedWeight = 65'536;
constexpr int64_t kMaxTransposedRows = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool can_transpose(const Problem& problem, int64_t rows, int64_t features) {
  if (problem.lanes == 0 || rows > kMaxTransposedRows) return false;
  const int64_t all_lanes = ceil_div(rows, problem.lanes) * problem.lanes;
  return 4 * rows >= 3 * all_lanes && 4 * problem.hidden * features >= kMinTransposedWeight;
}

}  // namespace

Plan make_cpu_plan(const Problem& problem) {
  Plan plan = {};
  plan.batch_slices = plan.unit_slices = 1;

  const int64_t recurrent = 4 * problem.hidden * problem.projection;
  const int64_t work = problem.rows * problem.directions * 2 * recurrent;
  const int64_t threads = work >= kMinParallelWork ? problem.threads : 1;
  const int64_t each = ceil_div(threads, problem.directions);  // threads of a direction
  const bool shares_units = problem.concurrent_threads && problem.projection == problem.hidden &&
                            2 * recurrent * problem.batch / each >= kMinSharedStep;
  const int64_t units = std::min(each, ceil_div(problem.hidden, kMinUnitSlice));
  const bool few = problem.batch < kMinBatchSlice * each;
  const bool once = problem.length == 1 && units == each;  // each thread packs only its own part
  if (shares_units && (few || once || recurrent > kMaxCachedWeights)) {
    plan.unit_slices = units;
  } else {
    plan.batch_slices = std::max<int64_t>(1, std::min(each, problem.batch));
  }
  plan.parallel = threads > 1 && plan.batch_slices * plan.unit_slices * problem.directions > 1;

  const int64_t batch = ceil_div(problem.batch, plan.batch_slices);
  const int64_t chunks = std::max<int64_t>(1, problem.length * batch / kChunkRows);
  plan.chunk = ceil_div(problem.length, chunks);
  const int64_t input_rows = problem.length * batch;
  plan.input_gemm = input_rows <= kMaxDirectRows                        ? Gemm::dot
                    : plan.chunk < problem.length                       ? Gemm::packed_ahead
                    : can_transpose(problem, input_rows, problem.input) ? Gemm::transposed
                                                                        : Gemm::packed_on_use;
  const bool dot = batch == 1 || (batch <= kMaxDirectRows && problem.length <= kMaxDirectSteps);
  plan.recurrent_gemm = dot                                                 ? Gemm::dot
                        : problem.length > 1                                ? Gemm::packed_ahead
                        : can_transpose(problem, batch, problem.projection) ? Gemm::transposed
                                                                            : Gemm::packed_on_use;
  plan.kernel = dot ? Kernel::direct : Kernel::panels;
  return plan;
}

}  // namespace fused_lstm
