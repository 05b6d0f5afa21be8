// How a persistent kernel spreads a layer over the blocks of a GPU, and what lies where in the
// shared memory of each: plain arithmetic for the plan, the launch and the kernel. Free of torch.
//
// A step of the walk is one product for each direction and slice of the batch,
//   forward:   [4 H, H] x [H, B]   rows: the gates of each unit;  depth: h of each unit
//   backward:  [H, 4 H] x [4 H, B] rows: the units;               depth: the gates' gradients
// with the weights on the left, which never move. A team of blocks shares its rows, unit by unit;
// the warps of a block share the block's rows and, if there are fewer row tiles than warps, depth.
#pragma once

#include <cstdint>

#include "core/numeric.h"

namespace fused_lstm {

enum class Kernel {
  direct,    // CPU, few sequences: dot products with the recurrent weights where they lie
  panels,    // CPU: tiles of sequences and units over weights packed into panels
  block,     // CUDA: all steps in one launch, the recurrent weights in each block
  cluster,   // CUDA: likewise, in each cluster of blocks
  grid,      // CUDA: likewise, over the whole GPU
  streamed,  // CUDA: a GEMM and one fused pointwise launch for each step
};

constexpr int warp_threads = 32;
constexpr int block_warps = 8;
constexpr int block_threads = block_warps * warp_threads;
constexpr int tile_rows = 16;      // of the weights
constexpr int tile_sequences = 8;  // of the operand
constexpr int depth_bytes = 32;    // of both
constexpr int max_sequences = 32;  // of a slice
constexpr int max_pairs = 4;       // of a unit and a sequence, whose states a thread holds

// A thread's part of a tile of weights is a fragment. So many lie in its registers, the others in
// shared memory: as many as leave no register spilled (FUSED_LSTM_KERNEL_STATS=1 shows it).
constexpr int fragment_bytes = 16;

constexpr int resident_fragments(bool tensor_cores) { return tensor_cores ? 20 : 4; }

struct Placement {
  int blocks;     // of a team
  int units;      // hidden units of each block
  int slices;     // of the batch: each has a team of its own
  int sequences;  // of a slice
  int staged;     // sequences whose operand lies in shared memory at once
};

// The walk's share of the sizes: rows and depth that a hidden unit takes.
struct UnitShape {
  int rows, depth;
};
constexpr UnitShape forward_shape = {4, 1};
constexpr UnitShape backward_shape = {1, 4};

// Strides and offsets of shared memory in bytes.
struct Layout {
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

// number_bytes: of a weight.
constexpr Layout make_layout(Kernel kernel, const Placement& placement, UnitShape shape,
                             int hidden_size, int number_bytes, bool tensor_cores) {
  Layout l = {};
  l.row_tiles = (placement.units * shape.rows + tile_rows - 1) / tile_rows;
  l.groups = 1;
  while (2 * l.groups <= l.row_tiles && 2 * l.groups <= block_warps) l.groups *= 2;
  l.depth_tiles = (hidden_size * shape.depth * number_bytes + depth_bytes - 1) / depth_bytes;
  l.split_depth = (l.depth_tiles * l.groups + block_warps - 1) / block_warps;
  l.splits = (l.depth_tiles + l.split_depth - 1) / l.split_depth;
  l.fragments = (l.row_tiles + l.groups - 1) / l.groups * l.split_depth;
  // Rows of four that lie 32 bytes apart modulo 128 are read from different banks.
  l.operand_stride = depth_bytes * (l.depth_tiles | 1);
  l.partial_stride = 4 * (l.row_tiles * tile_rows + 4);

  const int sequences = static_cast<int>(round_up(placement.sequences, tile_sequences));
  const int resident = resident_fragments(tensor_cores);
  const int spilled = l.fragments > resident ? l.fragments - resident : 0;
  l.weights = 0;
  l.partials = spilled * block_threads * fragment_bytes;
  l.operand = l.partials + l.splits * sequences * l.partial_stride;
  l.operand = static_cast<int>(round_up(l.operand, 32));
  l.operand_bytes = round_up(placement.staged, tile_sequences) * l.operand_stride;
  l.total = l.operand + operand_buffers(kernel) * l.operand_bytes;
  return l;
}

// Numbers of one buffer of the operand in global memory: there its sequences lie without gaps.
constexpr int64_t exchange_size(const Layout& layout, const Placement& placement,
                                int number_bytes) {
  return static_cast<int64_t>(placement.sequences) * depth_bytes * layout.depth_tiles /
         number_bytes;
}

}  // namespace fused_lstm
