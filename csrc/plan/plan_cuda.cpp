// The plan for a GPU: for each kernel the placement of the shortest estimated step, and
// the best kernel of those.
#include <algorithm>
#include <cmath>
#include <limits>

#include "plan/plan.h"

namespace fused_lstm {
namespace {

// Of an H100, in cycles unless another unit is named; leads from the literature
// (benchmarks/NOTES.md), none measured here. Only their proportions matter.
constexpr double kCyclesPerMicrosecond = 1700;
constexpr double kBlockBarrier = 50;
constexpr double kClusterBarrier = 400;
constexpr double kGridBarrier = 1700;
constexpr double kGlobalLatency = 700;         // to and from the L2 cache, copies included
constexpr double kGathering = 250;             // of a fragment
constexpr double kStepOverhead = 500;          // gates, and latencies that nothing hides
constexpr double kTensorTile = 10;             // 16 x 8 sums over 32 bytes of depth, of a warp
constexpr double kScalarTile = 40;             // the same without tensor cores
constexpr double kSharedBytes = 128;           // a cycle, of a multiprocessor
constexpr double kGlobalBytes = 48;            // likewise, from the L2 cache
constexpr double kRemoteBytes = 32;            // likewise, to another multiprocessor's memory
constexpr double kStepwiseStep = 5;            // microseconds of two launches
constexpr double kStepwiseOperations = 100e6;  // a microsecond, of a GEMM with few rows
constexpr double kStepwiseElements = 0.5e6;    // a microsecond, of the pointwise kernel

constexpr int kSchedulers = 4;  // of a multiprocessor
constexpr int64_t kMaxHidden = 8192;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

UnitShape shape_of(const Problem& problem) {
  return problem.backward ? kBackwardShape : kForwardShape;
}

// The placement for slices of `sequences` and blocks of `units`.
Placement place(const Problem& problem, int64_t units, int64_t sequences) {
  return {static_cast<int>(ceil_div(problem.hidden, units)), static_cast<int>(units),
          static_cast<int>(ceil_div(problem.batch, sequences)), static_cast<int>(sequences),
          static_cast<int>(sequences)};
}

SharedLayout layout_of(const Problem& problem, Kernel kernel, const Placement& placement) {
  return make_layout(kernel, placement, shape_of(problem), static_cast<int>(problem.hidden),
                     problem.element_bytes, problem.tensor_cores);
}

bool fits(const Problem& problem, Kernel kernel, const Placement& placement) {
  return static_cast<int64_t>(placement.units) * placement.sequences <= kMaxPairs * kBlockThreads &&
         layout_of(problem, kernel, placement).total <= problem.gpu->shared_memory;
}

int64_t blocks_of(const Problem& problem, const Placement& placement) {
  return problem.directions * placement.slices * placement.blocks;
}

int clusters_at_once(const Gpu& gpu, int blocks) {
  int i = 0;
  while (i < kClusterSizes - 1 && 2 << i < blocks) ++i;
  return gpu.clusters[i];
}

double step_time(const Problem& problem, Kernel kernel, const Placement& placement) {
  const SharedLayout layout = layout_of(problem, kernel, placement);
  const double sequence_tiles = ceil_div(placement.sequences, kTileSequences);
  const double tiles = layout.fragments * sequence_tiles;  // of a warp
  const double arithmetic =
      tiles * (problem.tensor_cores ? kTensorTile : kScalarTile) * kBlockWarps / kSchedulers;
  const double spilled = std::max(layout.fragments - resident_fragments(problem.tensor_cores), 0);
  const double read = kBlockThreads * (spilled * kFragmentBytes + tiles * kFragmentBytes / 2.0);
  const double sums = 2.0 * layout.splits * sequence_tiles * kTileSequences * layout.partial_stride;
  double cycles = kStepOverhead + std::max(arithmetic, read / kSharedBytes) + sums / kSharedBytes;

  const double operand =
      static_cast<double>(placement.sequences) * kDepthBytes * layout.depth_tiles;
  const double multiprocessors = problem.gpu->multiprocessors;
  double waves = std::ceil(blocks_of(problem, placement) / multiprocessors);
  if (kernel == Kernel::grid) {
    cycles += kGridBarrier + operand / kGlobalBytes +
              (ceil_div(placement.sequences, placement.staged) - 1) * kGlobalLatency;
  } else if (kernel == Kernel::cluster) {
    cycles += kClusterBarrier + operand / kRemoteBytes;
    const double clusters = clusters_at_once(*problem.gpu, placement.blocks);
    waves = std::ceil(problem.directions * placement.slices / std::max(clusters, 1.0));
  } else {
    cycles += kBlockBarrier;
  }
  // Each launch first gathers the weights, some fragments at a time.
  cycles += kGathering * layout.fragments / static_cast<double>(problem.length);
  return waves * cycles / kCyclesPerMicrosecond;
}

double stepwise_time(const Problem& problem) {
  const double sums = 4.0 * problem.batch * problem.hidden;
  return problem.directions * (kStepwiseStep + 2 * sums * problem.projection / kStepwiseOperations +
                               sums / kStepwiseElements);
}

// Keeps `placement` if it fits and beats what the candidate has.
void offer(const Problem& problem, Candidate& candidate, const Placement& placement) {
  if (!fits(problem, candidate.kernel, placement)) return;
  const Refusal& refusal = problem.gpu->refusals[refusal_index(candidate.kernel)];
  if (refusal.blocks > 0 &&
      blocks_together(problem, candidate.kernel, placement) >= refusal.blocks) {
    if (candidate.obstacle) candidate.obstacle = refusal.obstacle;
    return;
  }
  const double time = step_time(problem, candidate.kernel, placement);
  if (candidate.obstacle == nullptr && time >= candidate.microseconds) return;
  candidate = {candidate.kernel, nullptr, placement,
               layout_of(problem, candidate.kernel, placement).total, time};
}

// Tries a kernel with slices of 8, 16, 24 and 32 sequences; offer_units(candidate, sequences) tries
// its unit counts.
template <class OfferUnits>
Candidate best(Kernel kernel, const char* obstacle, const Problem& problem,
               const OfferUnits& offer_units) {
  Candidate candidate = {kernel, obstacle, {}, 0, 0};
  for (int64_t most = kTileSequences; most <= kMaxSequences; most += kTileSequences) {
    const int64_t slices = ceil_div(problem.batch, most);
    offer_units(candidate, ceil_div(problem.batch, slices));
    if (slices == 1) break;
  }
  return candidate;
}

const char* persistent_obstacle(const Problem& problem) {
  if (problem.gpu->capability < 80) return "the GPU's compute capability is under 8.0";
  if (problem.element_bytes > 4) return "the dtype is float64";
  if (problem.projected) return "the layer has a projection (proj_size)";
  if (problem.hidden == 0) return "hidden_size is 0";
  if (problem.batch == 0) return "the batch is empty";
  if (problem.hidden > kMaxHidden) return "hidden_size is over 8192";
  // Grids and counters are of 32 bits.
  if (problem.batch > (1 << 20)) return "the batch is over 2^20";
  return nullptr;
}

}  // namespace

int64_t blocks_together(const Problem& problem, Kernel kernel, const Placement& placement) {
  return kernel == Kernel::grid ? blocks_of(problem, placement) : placement.blocks;
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
  // The units of a whole tile of rows.
  const int64_t whole = kTileRows / shape_of(problem).rows;

  candidates[0] = best(Kernel::block, "the recurrent weights do not fit into one block", problem,
                       [&](Candidate& candidate, int64_t sequences) {
                         offer(problem, candidate, place(problem, problem.hidden, sequences));
                       });

  if (gpu.largest_cluster < 2) {
    candidates[1].obstacle =
        "the GPU has no clusters of blocks, or its kernels were compiled without (from "
        "compute capability 9.0 on)";
  } else {
    candidates[1] =
        best(Kernel::cluster,
             "the recurrent weights do not fit into a cluster of blocks, or need only one block",
             problem, [&](Candidate& candidate, int64_t sequences) {
               for (int blocks = 2; blocks <= gpu.largest_cluster; blocks *= 2) {
                 const int64_t units = round_up(ceil_div(problem.hidden, blocks), whole);
                 Placement placement = place(problem, units, sequences);
                 if (placement.blocks < 2) continue;
                 placement.blocks = blocks;  // some of them may have no units
                 offer(problem, candidate, placement);
               }
             });
  }

  candidates[2] =
      best(Kernel::grid,
           "the recurrent weights of all slices of the batch do not fit into the GPU at once",
           problem, [&](Candidate& candidate, int64_t sequences) {
             const int64_t block_groups = problem.directions * ceil_div(problem.batch, sequences);
             const int64_t blocks = gpu.multiprocessors / block_groups;  // of a block group
             if (blocks == 0) return;
             const int64_t fewest = round_up(ceil_div(problem.hidden, blocks), whole);
             for (int64_t units = fewest; units < problem.hidden + whole; units *= 2) {
               Placement placement = place(problem, std::min(units, problem.hidden), sequences);
               offer(problem, candidate, placement);
               for (int staged = kTileSequences; staged < sequences; staged *= 2) {
                 placement.staged = staged;
                 offer(problem, candidate, placement);
               }
             }
           });
  return candidates;
}

Plan make_gpu_plan(const Problem& problem) {
  Plan plan = {};
  plan.tensor_cores = problem.tensor_cores;
  plan.kernel = Kernel::stepwise;  // runs every problem
  double least = std::numeric_limits<double>::infinity();
  for (const Candidate& candidate : gpu_candidates(problem)) {
    if (candidate.obstacle) continue;
    const bool overridden = problem.kernel_override == candidate.kernel;
    if (!overridden && candidate.microseconds >= least) continue;
    plan.kernel = candidate.kernel;
    plan.placement = candidate.placement;
    if (overridden) break;
    least = candidate.microseconds;
  }
  return plan;
}

}  // namespace fused_lstm
