// The plan of a CPU: parts of the batch or of the hidden units for the threads, and a GEMM strategy
// for each weight.
#include <algorithm>

#include "plan/plan.h"

namespace fused_lstm {
namespace {

// Dot products read a weight once for each row of activations, packing reads and writes it once: up
// to this many rows, over this many steps, dot products move fewer bytes. With one row they always
// do, as each weight element is used once a step (benchmarks/NOTES.md).
constexpr int64_t kMaxDotRows = 3;
constexpr int64_t kMaxDotSteps = 8;

// Rows of the input GEMM between two reads of weight_ih.
constexpr int64_t kChunkRows = 96;

// The thresholds below were measured on two cores (benchmarks/NOTES.md).
// Floating-point operations of a call below which waking a second thread does not pay.
constexpr int64_t kMinParallelWork = 500'000;
// The same of one step of one part, where threads meet at a barrier each step. Half of it pays on
// idle cores, but a busy core delays all threads.
constexpr int64_t kMinSharedStep = 100'000;
// Elements of weight_hh that fit the cache of one core. Then each thread takes its own sequences
// and all hidden units, if it gets enough sequences to fill a register tile.
constexpr int64_t kMaxCachedWeights = 262'144;
constexpr int64_t kMinBatchSlice = 6;
// Hidden units of one part.
constexpr int64_t kMinUnitSlice = 64;

// Gemm::transposed: the weight is so large that packing it costs, and the rows fill three quarters
// of their SIMD lanes, but are not so many that packing is negligible beside the GEMM.
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
  const int64_t each = ceil_div(threads, problem.directions);  // threads for each direction
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
  plan.input_gemm = input_rows <= kMaxDotRows                           ? Gemm::dot
                    : plan.chunk < problem.length                       ? Gemm::packed_ahead
                    : can_transpose(problem, input_rows, problem.input) ? Gemm::transposed
                                                                        : Gemm::packed_on_use;
  const bool dot = batch == 1 || (batch <= kMaxDotRows && problem.length <= kMaxDotSteps);
  plan.recurrent_gemm = dot                                                 ? Gemm::dot
                        : problem.length > 1                                ? Gemm::packed_ahead
                        : can_transpose(problem, batch, problem.projection) ? Gemm::transposed
                                                                            : Gemm::packed_on_use;
  const auto backward = [&](bool few_rows, bool once) {
    return few_rows ? Gemm::dot : once && problem.lanes > 0 ? Gemm::unpacked : Gemm::packed_ahead;
  };
  plan.backward_gemm = backward(dot, problem.length == 1);
  plan.input_gradient_gemm = backward(problem.rows <= kMaxDotRows, problem.length == 1);
  plan.kernel = dot ? Kernel::direct : Kernel::panels;
  return plan;
}

}  // namespace fused_lstm
