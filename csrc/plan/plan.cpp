#include "plan/plan.h"

#include <algorithm>
#include <limits>
#include <string_view>

namespace fused_lstm {
namespace {

// So few rows, for so few steps, read a weight where it lies before it would be packed. One row
// does always: it takes each number once, wherever that lies (benchmarks/NOTES.md).
constexpr int64_t max_direct_rows = 3;
constexpr int64_t max_direct_steps = 8;

// Rows of input that share one reading of weight_ih.
constexpr int64_t chunk_rows = 96;

// The borders below were measured on two cores (benchmarks/NOTES.md).
// Below this many floating-point operations waking a second thread costs more than it gives.
constexpr int64_t min_parallel_work = 500'000;
// The same of one step of one part, for threads that wait for one another at each step. Half of it
// would still pay on idle cores; but one that is busy makes the other wait.
constexpr int64_t min_shared_step = 100'000;
// Recurrent weights (numbers) that fit the cache of one core: each thread then takes its own
// sequences, with all weights, if it has enough of them to fill a tile.
constexpr int64_t max_cached_weights = 262'144;
constexpr int64_t min_batch_slice = 6;
// Hidden units of a part, at least.
constexpr int64_t min_unit_slice = 64;

// A weight of so many numbers that is used once is not packed, if the rows that it meets fill so
// much of their lanes and are not so many that packing is little beside the product.
constexpr int64_t min_turned_weight = 65'536;
constexpr int64_t max_turned_rows = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Plan gpu_plan(const Problem& problem) {
  Plan plan = {};
  plan.kernel = Kernel::streamed;  // it can take everything
  double least = std::numeric_limits<double>::infinity();
  for (const Choice& choice : gpu_choices(problem)) {
    if (choice.obstacle) continue;
    const bool wanted = problem.wanted == choice.kernel;
    if (!wanted && choice.microseconds >= least) continue;
    plan.kernel = choice.kernel;
    plan.placement = choice.placement;
    if (wanted) break;
    least = choice.microseconds;
  }
  return plan;
}

bool turns(const Problem& problem, int64_t rows, int64_t features) {
  if (problem.lanes == 0 || rows > max_turned_rows) return false;
  const int64_t all_lanes = ceil_div(rows, problem.lanes) * problem.lanes;
  return 4 * rows >= 3 * all_lanes && 4 * problem.hidden * features >= min_turned_weight;
}

}  // namespace

Plan make_plan(const Problem& problem) {
  if (problem.gpu) return gpu_plan(problem);
  Plan plan = {Kernel::direct, 1, 1, false, 1, false, false, false, false, false, false, {}};

  const int64_t recurrent = 4 * problem.hidden * problem.projection;
  const int64_t work = problem.rows * problem.directions * 2 * recurrent;
  const int64_t threads = work >= min_parallel_work ? problem.threads : 1;
  const int64_t each = ceil_div(threads, problem.directions);  // threads of a direction
  const bool shares_units = problem.team && problem.projection == problem.hidden &&
                            2 * recurrent * problem.batch / each >= min_shared_step;
  const int64_t units = std::min(each, ceil_div(problem.hidden, min_unit_slice));
  const bool few = problem.batch < min_batch_slice * each;
  const bool once = problem.length == 1 && units == each;  // each thread packs only its own part
  if (shares_units && (few || once || recurrent > max_cached_weights)) {
    plan.unit_slices = units;
  } else {
    plan.batch_slices = std::max<int64_t>(1, std::min(each, problem.batch));
  }
  plan.parallel = threads > 1 && plan.batch_slices * plan.unit_slices * problem.directions > 1;

  const int64_t batch = ceil_div(problem.batch, plan.batch_slices);
  const int64_t chunks = std::max<int64_t>(1, problem.length * batch / chunk_rows);
  plan.chunk = ceil_div(problem.length, chunks);
  plan.direct_input = problem.length * batch <= max_direct_rows;
  plan.direct_recurrent =
      batch == 1 || (batch <= max_direct_rows && problem.length <= max_direct_steps);
  plan.pack_input = plan.chunk < problem.length;
  plan.pack_recurrent = problem.length > 1 && !plan.direct_recurrent;
  plan.turn_input = !plan.pack_input && !plan.direct_input &&
                    turns(problem, problem.length * batch, problem.input);
  plan.turn_recurrent =
      !plan.pack_recurrent && !plan.direct_recurrent && turns(problem, batch, problem.projection);
  plan.kernel = plan.direct_recurrent ? Kernel::direct : Kernel::panels;
  return plan;
}

namespace {

struct Name {
  Kernel kernel;
  const char* name;
};
constexpr Name names[] = {{Kernel::direct, "direct"}, {Kernel::panels, "panels"},
                          {Kernel::block, "block"},   {Kernel::cluster, "cluster"},
                          {Kernel::grid, "grid"},     {Kernel::streamed, "streamed"}};

}  // namespace

const char* kernel_name(Kernel kernel) {
  for (const Name& one : names) {
    if (one.kernel == kernel) return one.name;
  }
  return "unknown";
}

bool is_gpu_kernel(Kernel kernel) { return kernel != Kernel::direct && kernel != Kernel::panels; }

std::optional<Kernel> kernel_named(std::string_view name) {
  for (const Name& one : names) {
    if (name == one.name) return one.kernel;
  }
  return std::nullopt;
}

}  // namespace fused_lstm
