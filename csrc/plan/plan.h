// Which kernel a call runs, decided here and nowhere else: a pure function of the problem and of
// the device. Free of torch.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "plan/cpu_machine.h"
#include "plan/placement.h"

namespace fused_lstm {

// What the driver refused of one kernel.
struct Refusal {
  int64_t blocks;        // the fewest of a cluster, or of a grid's launch; 0: nothing
  const char* obstacle;  // why, in words
};

constexpr int kClusterSizes = 4;  // clusters of 2, 4, 8 and 16 blocks

// What a plan needs to know of a GPU.
struct Gpu {
  int capability;  // 90 for compute capability 9.0; what the kernels were compiled for, if lower
  int multiprocessors;
  int64_t shared_memory;                    // bytes that one block can have
  int largest_cluster;                      // blocks, each with all of that; 0 without clusters
  std::array<int, kClusterSizes> clusters;  // of 2 << i blocks, that run at once
  std::array<Refusal, 3> refusals;          // of block, cluster and grid
};

// A persistent kernel's place in Gpu::refusals.
inline int refusal_index(Kernel kernel) {
  return static_cast<int>(kernel) - static_cast<int>(Kernel::block);
}

struct Problem {
  std::optional<Gpu> gpu;  // else a CPU

  int64_t length;      // T
  int64_t batch;       // B
  int64_t rows;        // T * B, or what a packed sequence has of them
  int64_t input;       // D
  int64_t hidden;      // H
  int64_t projection;  // P; H without a projection
  bool projected;
  int64_t directions;
  bool backward;
  int element_bytes;  // of a weight: 2, 4, 8

  // Of a CPU:
  Machine machine;
  int threads;
  bool concurrent_threads;  // of one parallel loop, so that they may meet at a barrier
  int operand_bytes;        // of what GEMMs multiply: 1 for int8, 2 for bfloat16, 4, 8
  bool frozen;              // weights are in panels already, and in no other form

  // Of a GPU:
  bool tensor_cores;  // float32: in TF32
  bool ragged;        // packed, lengths or resets; backward, gradients of gates or cell states
  int layers = 1;     // at once, of a stack whose upper layers are of this problem
  std::optional<Kernel> kernel_override;  // chosen if it can run
};

struct Plan {
  Kernel kernel;

  // Of a CPU. Slices of the batch run through time independently; slices of the hidden units meet
  // at a barrier each step.
  int64_t batch_slices;
  int64_t unit_slices;
  bool parallel;          // run slices and directions on several threads
  int64_t chunk;          // steps of one input GEMM
  Gemm input_gemm;        // with weight_ih; backward, for the gradient of the input
  Gemm recurrent_gemm;    // with weight_hh
  int64_t gradient_rows;  // of T * B, in one block of the GEMMs for the weights' gradients
  double microseconds;    // estimated, of the GEMMs with both

  // Of a GPU.
  bool tensor_cores;  // the problem's
  // Of the GPU's kernels block, cluster and grid.
  Placement placement;
  int layers;  // of a stack, in one launch
};

// One kernel of a GPU: its obstacle, or its best placement and estimate.
struct Candidate {
  Kernel kernel;
  const char* obstacle;   // why it cannot run, or null
  Placement placement;    // its best
  int64_t shared_memory;  // bytes of a block there
  double microseconds;    // estimated, of a step
};

Plan make_plan(const Problem& problem);
// Of the first layers of a stack of so many: how many of them go at once, and how.
Plan make_stack_plan(Problem problem, int64_t layers);
// Whether a CPU's gates are quicker by divisions than by estimates of reciprocals.
bool make_division_plan(const Machine& machine);
// The largest hidden size of a stack whose layers go at once on some GPU, of elements of so many
// bytes; 0: of none.
int64_t largest_stacked(int element_bytes);
// Its two halves, plan_cpu.cpp and plan_cuda.cpp.
Plan make_cpu_plan(const Problem& problem);
Plan make_gpu_plan(const Problem& problem);

// Every kernel of a GPU, in the order block, cluster, grid, stepwise. make_plan chooses the fastest
// of those without an obstacle.
std::array<Candidate, 4> gpu_candidates(const Problem& problem);
// The blocks that a launch wants to run at the same time: of a cluster, or of a whole grid or
// stack.
int64_t blocks_together(const Problem& problem, Kernel kernel, const Placement& placement);

}  // namespace fused_lstm
