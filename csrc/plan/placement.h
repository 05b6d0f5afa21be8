// How a persistent kernel spreads a layer over the blocks of a GPU, and what is where in the
// shared memory of each: plain arithmetic for the plan, the launch and the kernel. Free of torch.
//
// A step of the recurrence is one GEMM for each direction and slice of the batch,
//   forward:   [4 H, H] x [H, B]   rows: the gates of each unit;  depth: h of each unit
//   backward:  [H, 4 H] x [4 H, B] rows: the units;               depth: the gates' gradients
// with the weights on the left, which never move. A block group shares its rows, unit by unit; the
// warps of a block share the block's rows and, if there are fewer row tiles than warps, depth.
#pragma once

#include <cstdint>

#include "core/numeric.h"
#include "plan/kernel.h"

namespace fused_lstm {

constexpr int kWarpThreads = 32;
constexpr int kBlockWarps = 8;
constexpr int kBlockThreads = kBlockWarps * kWarpThreads;
constexpr int kTileRows = 16;      // of the weights
constexpr int kTileSequences = 8;  // of the operand
constexpr int kDepthBytes = 32;    // of both
constexpr int kMaxSequences = 32;  // of a slice
constexpr int kMaxPairs = 4;       // of a unit and a sequence, whose states a thread holds

// A thread's part of a tile of weights is a fragment. So many stay in its registers, the others in
// shared memory: as many as leave no register spilled (FUSED_LSTM_KERNEL_STATS=1 shows it).
constexpr int kFragmentBytes = 16;

constexpr int resident_fragments(bool tensor_cores) { return tensor_cores ? 20 : 4; }

struct Placement {
  int blocks;     // of a block group
  int units;      // hidden units of each block
  int slices;     // of the batch: each has a block group of its own
  int sequences;  // of a slice
  int staged;     // sequences whose operand is in shared memory at once
};

// Rows and depth of the GEMM of one hidden unit.
struct UnitShape {
  int rows, depth;
};
constexpr UnitShape kForwardShape = {4, 1};
constexpr UnitShape kBackwardShape = {1, 4};

// Strides and offsets of shared memory in bytes.
struct SharedLayout {
  int row_tiles;       // of a block
  int groups;          // of warps, each with every groups-th row tile
  int splits;          // parts of the depth, each a warp's of every group
  int depth_tiles;     // 32 bytes each
  int split_depth;     // depth tiles of a split
  int fragments;       // that a warp holds at most
  int operand_stride;  // of one sequence
  int partial_stride;  // of one sequence; the sums of a block's rows
  int weights, partials, operand;
  int64_t operand_bytes;  // of one buffer
  int64_t total;
};

// Buffers of the operand in a block's shared memory: two, where others write into them.
FUSED_LSTM_INLINE constexpr int operand_buffers(Kernel kernel) {
  return kernel == Kernel::grid ? 1 : 2;
}

FUSED_LSTM_INLINE constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// element_bytes: of a weight.
constexpr SharedLayout make_layout(Kernel kernel, const Placement& placement, UnitShape shape,
                                   int hidden_size, int element_bytes, bool tensor_cores) {
  SharedLayout l = {};
  l.row_tiles = (placement.units * shape.rows + kTileRows - 1) / kTileRows;
  l.groups = 1;
  while (2 * l.groups <= l.row_tiles && 2 * l.groups <= kBlockWarps) l.groups *= 2;
  l.depth_tiles = (hidden_size * shape.depth * element_bytes + kDepthBytes - 1) / kDepthBytes;
  l.split_depth = (l.depth_tiles * l.groups + kBlockWarps - 1) / kBlockWarps;
  l.splits = (l.depth_tiles + l.split_depth - 1) / l.split_depth;
  l.fragments = (l.row_tiles + l.groups - 1) / l.groups * l.split_depth;
  // Four rows that are 32 bytes apart modulo 128 are read from different banks.
  l.operand_stride = kDepthBytes * (l.depth_tiles | 1);
  l.partial_stride = 4 * (l.row_tiles * kTileRows + 4);

  const int sequences = static_cast<int>(round_up(placement.sequences, kTileSequences));
  const int resident = resident_fragments(tensor_cores);
  const int spilled = l.fragments > resident ? l.fragments - resident : 0;
  l.weights = 0;
  l.partials = spilled * kBlockThreads * kFragmentBytes;
  l.operand = l.partials + l.splits * sequences * l.partial_stride;
  l.operand = static_cast<int>(round_up(l.operand, 32));
  l.operand_bytes = round_up(placement.staged, kTileSequences) * l.operand_stride;
  l.total = l.operand + operand_buffers(kernel) * l.operand_bytes;
  return l;
}

// Elements of one buffer of the operand in global memory: without gaps between its sequences.
constexpr int64_t exchange_size(const SharedLayout& layout, const Placement& placement,
                                int element_bytes) {
  return static_cast<int64_t>(placement.sequences) * kDepthBytes * layout.depth_tiles /
         element_bytes;
}

}  // namespace fused_lstm
