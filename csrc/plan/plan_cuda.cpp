// The plan for a GPU: for each kernel the placement of the shortest estimated step, and
// the best kernel of those.
#include <algorithm>
#include <cmath>
#include <limits>

#include "plan/plan.h"

namespace fused_lstm {
namespace {

// Of a step on an H100 (sm_90), in cycles unless another unit is named. Those of a warp are from
// the kernels' machine code (make sass), rounded up; the exchanges' from the literature
// (benchmarks/NOTES.md). No GPU has measured any of them.
constexpr double kCyclesPerMicrosecond = 1755;
constexpr double kGridExchange = 650;     // through the L2 cache
constexpr double kClusterExchange = 250;  // through distributed shared memory
constexpr double kFragment = 8.5;         // of a warp, each of 16 bytes a lane
struct StepCycles {
  double forward, backward;  // besides fragments and exchange
};
constexpr StepCycles kBlockStep = {1250, 1150};
constexpr StepCycles kClusterStep = {940, 850};
constexpr StepCycles kGridStep = {760, 1180};
// Of layers of a stack at once: of a step of each, and of a fragment.
constexpr StepCycles kStackedBlockStep = {1720, 2140};
constexpr StepCycles kStackedClusterStep = {1200, 1200};
constexpr StepCycles kStackedFragment = {12.6, 8.5};
constexpr StepCycles kClusterRagged = {90, 110};  // more, of ragged sequences; a block's too
// Of a cluster, whose tilings alone have several, each sequence tile beyond the first; forward, of
// a warp, each row tile beyond the first, for each sequence tile.
constexpr StepCycles kClusterSequenceTile = {90, 160};
constexpr double kClusterRowTile = 340;
constexpr StepCycles kGridRagged = {350, 100};
// Forward on the grid in groups: of a step of each.
constexpr double kBatchedGroup = 1150;
constexpr double kBatchedRagged = 1400;
constexpr double kBatchedProduct = 13;  // of 16 bytes a lane of weights and 8 sequences
// A cycle and multiprocessor, where all of them read at once: assumed.
constexpr double kL2Bytes = 32;
// Backward by scattered sums. `step`, `ragged`, `group` and `word` are from the machine code
// for 8.0 or 9.0.
struct ScatterCycles {
  double per_microsecond;
  double step, ragged;  // besides products, exchange and what other warps' accesses take
  double group, word;  // of a batched slice: of a group, likewise, and of a word that a thread sums
  double product;      // of two warps that share a tensor core
  // Assumed: bytes a cycle between a multiprocessor and L2, when all of them load and store.
  double bytes;
};
// An A100: 312 TFLOPS are 8 cycles a product.
constexpr ScatterCycles kScatterA100 = {1410, 980, 200, 680, 33, 16, 64};
// An H100, and what comes after it: 989 TFLOPS are 4 cycles a product.
constexpr ScatterCycles kScatterH100 = {1755, 1000, 200, 650, 30, 8, kL2Bytes};
constexpr double kLayerSteps = 3;              // that a layer of a stack is behind the one before
constexpr double kLaunch = 4;                  // microseconds, as of the next
constexpr double kInputGemm = 4;               // microseconds of its launch, once a direction
constexpr double kStepwiseStep = 5;            // microseconds of two launches
constexpr double kStepwiseOperations = 100e6;  // a microsecond, of a GEMM with few rows
constexpr double kStepwiseElements = 0.5e6;    // a microsecond, of the pointwise kernel

constexpr int64_t kMaxHidden = 8192;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Precision precision_for(const Problem& problem) {
  return precision_of(problem.element_bytes, problem.tensor_cores);
}

SharedLayout layout_of(const Problem& problem, Kernel kernel, const Placement& placement) {
  return make_layout(kernel, problem.backward, placement, precision_for(problem));
}

int64_t blocks_of(const Problem& problem, const Placement& placement) {
  return problem.directions * problem.layers * placement.slices * placement.blocks;
}

int clusters_at_once(const Gpu& gpu, int blocks) {
  int i = 0;
  while (i < kClusterSizes - 1 && 2 << i < blocks) ++i;
  return gpu.clusters[i];
}

// What a block stores and loads through L2 is a word of each unit and sequence, both times. Of a
// group of a batched slice that overlaps with the block's own work, and its exchange with the other
// groups.
double scatter_step_time(const Problem& problem, const Placement& placement) {
  const Tiling& tiling = placement.tiling;
  const double products = precision_for(problem) == Precision::tf32_split ? 3 : 1;
  const ScatterCycles& cycles = problem.gpu->capability >= 90 ? kScatterH100 : kScatterA100;
  const double transfer = 2.0 * 4 * kTileSequences * problem.hidden / cycles.bytes;
  const double product = cycles.product * products * tiling.fragments();
  const double groups = groups_of(placement);
  if (groups == 1) {
    const double ragged = problem.ragged || tiling.batched ? cycles.ragged : 0;
    return (cycles.step + ragged + product + transfer + kGridExchange) / cycles.per_microsecond;
  }
  const int64_t sharers = kBlockThreads / (placement.units * kTileSequences);  // of a pair's words
  const double words = ceil_div(placement.blocks, std::max(sharers, int64_t{1}));
  const double group = std::max(cycles.group + cycles.word * words + product, transfer);
  const double exposed = std::max(0.0, kGridExchange + transfer - (groups - 1) * group);
  return (groups * group + exposed) / cycles.per_microsecond;
}

// Forward; the exchange of one group hides behind the work on the others.
double batched_step_time(const Problem& problem, const Placement& placement) {
  const Tiling& t = placement.tiling;
  const double words = fragment_words(precision_for(problem)) / 4.0;
  const int groups = groups_of(placement);
  const double group = kBatchedGroup + (problem.ragged ? kBatchedRagged : 0) +
                       kBatchedProduct * words * t.fragments() * t.sequence_tiles;
  const double cycles = groups * group + (groups == 1 ? kGridExchange : 0);
  const double bytes =
      static_cast<double>(groups) * group_sequences(t) * problem.hidden * problem.element_bytes;
  return std::max(cycles, bytes / kL2Bytes) / kCyclesPerMicrosecond +
         kInputGemm * problem.directions / problem.length;
}

// All layers of a stack run at once, or it is not offered.
double stacked_step_time(const Problem& problem, Kernel kernel, const Placement& placement) {
  const bool cluster = kernel == Kernel::cluster;
  const StepCycles& step = cluster ? kStackedClusterStep : kStackedBlockStep;
  const double fragments = placement.tiling.fragments();
  const double cycles = problem.backward ? step.backward + kStackedFragment.backward * fragments
                                         : step.forward + kStackedFragment.forward * fragments;
  return (cycles + (cluster ? kClusterExchange : 0)) / kCyclesPerMicrosecond;
}

double step_time(const Problem& problem, Kernel kernel, const Placement& placement) {
  const Tiling& t = placement.tiling;
  if (t.stacked()) return stacked_step_time(problem, kernel, placement);
  if (t.scatter) return scatter_step_time(problem, placement);
  if (t.batched) return batched_step_time(problem, placement);
  const double words = fragment_words(precision_for(problem)) / 4.0;
  const StepCycles& step = kernel == Kernel::block     ? kBlockStep
                           : kernel == Kernel::cluster ? kClusterStep
                                                       : kGridStep;
  const StepCycles& ragged = kernel == Kernel::grid ? kGridRagged : kClusterRagged;
  const auto of_pass = [&](const StepCycles& its) {
    return problem.backward ? its.backward : its.forward;
  };
  const bool cluster = kernel == Kernel::cluster;
  // Of several sequence tiles the kernel is that for ragged sequences.
  const bool is_ragged = problem.ragged || t.sequence_tiles > 1;
  double cycles = of_pass(step) + (is_ragged ? of_pass(ragged) : 0) +
                  of_pass(kClusterSequenceTile) * (t.sequence_tiles - 1) +
                  kFragment * words * t.fragments() * t.sequence_tiles;
  if (cluster && !problem.backward) {
    cycles += kClusterRowTile * (t.row_tiles - 1) * t.sequence_tiles;
  }
  const double multiprocessors = problem.gpu->multiprocessors;
  double waves = std::ceil(blocks_of(problem, placement) / multiprocessors);
  if (kernel == Kernel::grid) {
    cycles += kGridExchange + (problem.backward ? kClusterExchange : 0);
  } else if (cluster) {
    cycles += kClusterExchange;
    const double clusters = clusters_at_once(*problem.gpu, placement.blocks);
    waves = std::ceil(problem.directions * placement.slices / std::max(clusters, 1.0));
  }
  const bool input_ahead = !problem.backward && t.input_tiles == 0;
  return waves * cycles / kCyclesPerMicrosecond +
         (input_ahead ? kInputGemm * problem.directions / problem.length : 0.0);
}

double stepwise_time(const Problem& problem) {
  const double sums = 4.0 * problem.batch * problem.hidden;
  return problem.directions * (kStepwiseStep + 2 * sums * problem.projection / kStepwiseOperations +
                               sums / kStepwiseElements);
}

// Keeps the placement if it fits into shared memory and beats what the candidate has.
void offer(const Problem& problem, Candidate& candidate, const Placement& placement) {
  const int64_t shared_memory = layout_of(problem, candidate.kernel, placement).total;
  if (shared_memory > problem.gpu->shared_memory) return;
  const Refusal& refusal = problem.gpu->refusals[refusal_index(candidate.kernel)];
  if (refusal.blocks > 0 &&
      blocks_together(problem, candidate.kernel, placement) >= refusal.blocks) {
    if (candidate.obstacle) candidate.obstacle = refusal.obstacle;
    return;
  }
  const double time = step_time(problem, candidate.kernel, placement);
  if (candidate.obstacle == nullptr && time >= candidate.microseconds) return;
  candidate = {candidate.kernel, nullptr, placement, shared_memory, time};
}

// Blocks of the tiling's kernel on the grid that run at once.
int64_t grid_blocks_at_once(const Problem& problem, const Tiling& tiling) {
  const int multiprocessors = problem.gpu->multiprocessors;
  if (!problem.backward || tiling.scatter) return multiprocessors;
  return std::min(multiprocessors, kGateBlocks * clusters_at_once(*problem.gpu, kGateBlocks));
}

// Slices of a stack whose layers all run at once, on clusters of so many blocks or on one.
int64_t stacked_slices_at_once(const Problem& problem, int64_t blocks) {
  const int64_t groups = blocks > 1 ? clusters_at_once(*problem.gpu, static_cast<int>(blocks))
                                    : problem.gpu->multiprocessors;
  return groups / problem.layers;
}

// Offers `units` hidden units on each of `blocks` blocks, by slices of at most the tiling's
// sequences; batched, by as many slices of whole groups as run at once.
void offer(const Problem& problem, Candidate& candidate, const Tiling& tiling, int64_t blocks,
           int64_t units) {
  const int64_t at_once = candidate.kernel == Kernel::grid
                              ? grid_blocks_at_once(problem, tiling) / blocks / problem.directions
                              : std::numeric_limits<int64_t>::max();  // slices
  const int64_t groups = ceil_div(problem.batch, group_sequences(tiling));
  int64_t slices = groups, sequences = ceil_div(problem.batch, slices);
  if (tiling.batched && at_once > 0) {
    sequences = ceil_div(groups, std::min(groups, at_once)) * group_sequences(tiling);
    slices = ceil_div(problem.batch, sequences);
  }
  if (slices > at_once) return;
  if (tiling.stacked() && slices > stacked_slices_at_once(problem, blocks)) return;
  offer(problem, candidate,
        {static_cast<int>(blocks), static_cast<int>(units), static_cast<int>(slices),
         static_cast<int>(sequences), tiling});
}

// Elements of the depth of a GEMM, and what of it a block of a backward kernel has.
int64_t depth_elements(const Problem& problem, const Tiling& tiling) {
  return static_cast<int64_t>(tiling.depth_tiles) * kDepthBytes / problem.element_bytes;
}

// One block, or a cluster of `blocks`: forward, a warp's row tiles are kTileUnits units each and
// its depth is the layer's; backward, they are rows of the layer and its depth is the block's
// gates.
void offer_cluster(const Problem& problem, Candidate& candidate, const Tiling& tiling,
                   int64_t blocks) {
  const int64_t depth = depth_elements(problem, tiling);
  const int64_t tiles = static_cast<int64_t>(tiling.row_tiles) * kBlockWarps;  // of rows
  if (tiling.sequence_tiles > 1 && blocks % kTiledCluster != 0) return;
  if (tiling.stacked() != problem.layers > 1) return;
  // What one layer hands to the next is words of 8 bytes.
  if (tiling.stacked() && problem.hidden * problem.element_bytes % 8 != 0) return;
  if (problem.backward) {
    const int64_t units = depth / kGates;
    if (blocks * units < problem.hidden || blocks * units > tiles * kTileRows) return;
    return offer(problem, candidate, tiling, blocks, units);
  }
  // Of a stack every warp has units, as all of them send.
  const int64_t units = tiling.stacked() ? tiles * kTileUnits
                                         : round_up(ceil_div(problem.hidden, blocks), kTileUnits);
  const int64_t input = static_cast<int64_t>(tiling.input_tiles) * kDepthBytes;
  if (units > tiles * kTileUnits || blocks * units > depth) return;
  if (blocks * units < problem.hidden) return;
  if (input > 0 && !tiling.stacked() && problem.input * problem.element_bytes > input) return;
  offer(problem, candidate, tiling, blocks, units);
}

// Row tiles and depth as of a cluster, whose blocks are as many as it takes.
void offer_scatter(const Problem& problem, Candidate& candidate, const Tiling& tiling) {
  if (problem.hidden > int64_t{tiling.row_tiles} * kBlockWarps * kTileRows) return;
  const int64_t units = depth_elements(problem, tiling) / kGates;
  offer(problem, candidate, tiling, ceil_div(problem.hidden, units), units);
}

// Backward by either kernel; the one that takes clusters of kGateBlocks, where the GPU has them.
void offer_grid(const Problem& problem, Candidate& candidate, const Tiling& tiling) {
  if (problem.layers > 1) return;
  if (tiling.scatter) return offer_scatter(problem, candidate, tiling);
  if (problem.backward && problem.gpu->largest_cluster < kGateBlocks) return;
  const int64_t units = static_cast<int64_t>(tiling.row_tiles) * kTileUnits;
  const int64_t blocks = problem.backward
                             ? kGateBlocks * ceil_div(problem.hidden, kGateBlocks * units)
                             : ceil_div(problem.hidden, units);
  const int64_t depth = kBlockWarps * depth_elements(problem, tiling);
  if ((problem.backward ? problem.hidden : blocks * units) > depth) return;
  offer(problem, candidate, tiling, blocks, units);
}

const char* persistent_obstacle(const Problem& problem) {
  if (problem.gpu->capability < 80) return "the GPU's compute capability is under 8.0";
  if (problem.element_bytes > 4) return "the dtype is float64";
  if (problem.projected) return "the layer has a projection (proj_size)";
  if (problem.hidden == 0) return "hidden_size is 0";
  if (problem.batch == 0) return "the batch is empty";
  if (problem.hidden > kMaxHidden) return "hidden_size is over 8192";
  // Grids, and rows in the kernels, are of 32 bits.
  if (problem.batch > (1 << 20)) return "the batch is over 2^20";
  if (problem.rows >= (int64_t{1} << 31)) return "the steps of all sequences are 2^31 or more";
  return nullptr;
}

}  // namespace

int64_t blocks_together(const Problem& problem, Kernel kernel, const Placement& placement) {
  const bool together = kernel == Kernel::grid || placement.tiling.stacked();
  return together ? blocks_of(problem, placement) : placement.blocks;
}

std::array<Candidate, 4> gpu_candidates(const Problem& problem) {
  std::array<Candidate, 4> candidates = {
      {{Kernel::block, nullptr, {}, 0, 0},
       {Kernel::cluster, nullptr, {}, 0, 0},
       {Kernel::grid, nullptr, {}, 0, 0},
       {Kernel::stepwise, nullptr, {}, 0, stepwise_time(problem)}}};
  if (const char* const obstacle = persistent_obstacle(problem)) {
    for (int i = 0; i < 3; ++i) candidates[i].obstacle = obstacle;
    return candidates;
  }
  const Gpu& gpu = *problem.gpu;
  const auto best = [&](Kernel kernel, const char* obstacle, const auto& offer_tiling) {
    Candidate candidate = {kernel, obstacle, {}, 0, 0};
    const Tilings list = tilings(kernel, precision_for(problem), problem.backward);
    for (int i = 0; i < list.count; ++i) offer_tiling(candidate, list.list[i]);
    return candidate;
  };
  candidates[0] = best(Kernel::block, "the recurrent weights do not fit into one block",
                       [&](Candidate& candidate, const Tiling& tiling) {
                         offer_cluster(problem, candidate, tiling, 1);
                       });
  if (gpu.largest_cluster < 2) {
    candidates[1].obstacle =
        "the GPU has no clusters of blocks, or its kernels were compiled without (from "
        "compute capability 9.0 on)";
  } else {
    candidates[1] =
        best(Kernel::cluster, "the recurrent weights do not fit into a cluster of blocks",
             [&](Candidate& candidate, const Tiling& tiling) {
               for (int blocks = 2; blocks <= gpu.largest_cluster; blocks *= 2) {
                 offer_cluster(problem, candidate, tiling, blocks);
               }
             });
  }
  candidates[2] = best(
      Kernel::grid,
      "the recurrent weights of all slices of the batch do not fit into the GPU at once",
      [&](Candidate& candidate, const Tiling& tiling) { offer_grid(problem, candidate, tiling); });
  return candidates;
}

int64_t largest_stacked(int element_bytes) {
  if (element_bytes > 4) return 0;
  int64_t largest = 0;
  const Precision precision = precision_of(element_bytes, /*tensor_cores=*/true);
  for (const Kernel kernel : {Kernel::block, Kernel::cluster}) {
    const Tilings forward = tilings(kernel, precision, /*backward=*/false);
    for (int i = 0; i < forward.count; ++i) {
      const Tiling& tiling = forward.list[i];
      if (!tiling.stacked()) continue;
      largest = std::max<int64_t>(largest, tiling.depth_tiles * kDepthBytes / element_bytes);
    }
  }
  return largest;
}

Plan make_gpu_plan(const Problem& problem) {
  Plan plan = {};
  plan.tensor_cores = problem.tensor_cores;
  plan.kernel = Kernel::stepwise;  // runs every problem
  plan.layers = problem.layers;
  plan.microseconds = std::numeric_limits<double>::infinity();
  for (const Candidate& candidate : gpu_candidates(problem)) {
    if (candidate.obstacle) continue;
    const bool overridden = problem.kernel_override == candidate.kernel;
    if (!overridden && candidate.microseconds >= plan.microseconds) continue;
    plan.kernel = candidate.kernel;
    plan.placement = candidate.placement;
    plan.microseconds = candidate.microseconds;
    if (overridden) break;
  }
  return plan;
}

// By the time of a step for each of the layers. Those at once begin one after the other, and have a
// fill of memory before their launch; those by themselves have a GEMM between them, which forward
// is in the estimate.
Plan make_stack_plan(Problem problem, int64_t layers) {
  const auto length = static_cast<double>(problem.length);
  problem.layers = 1;
  Plan best = make_gpu_plan(problem);
  double least = best.microseconds + (kLaunch + (problem.backward ? kInputGemm : 0)) / length;
  for (problem.layers = 2; problem.layers <= std::min<int64_t>(layers, kMaxParts);
       ++problem.layers) {
    const Plan plan = make_gpu_plan(problem);
    if (plan.kernel == Kernel::stepwise) continue;
    if (problem.kernel_override && problem.kernel_override != plan.kernel) continue;
    const double steps = length + kLayerSteps * (plan.layers - 1);
    const double each = (plan.microseconds * steps + 2 * kLaunch) / length / plan.layers;
    if (each >= least) continue;
    best = plan;
    least = each;
  }
  return best;
}

}  // namespace fused_lstm
