// How a persistent kernel spreads a layer over the blocks of a GPU, which sizes of it are compiled,
// and what is where in the shared memory of each block: plain arithmetic for the plan, the launch
// and the kernel. Free of torch.
//
// A step of the recurrence is one GEMM for each direction and slice of the batch,
//   forward:   [4 H, H] x [H, B]   rows: the gates of each unit;  depth: h of each unit
//   backward:  [H, 4 H] x [4 H, B] rows: the units;               depth: the gates' gradients
// with the weights on the left, which never move.
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
constexpr int kGates = 4;
constexpr int kTileUnits = kTileRows / kGates;  // forward
constexpr int kMaxCluster = 16;                 // blocks
constexpr int kMaxParts = 4;                    // of a launch: directions, or layers of a stack
constexpr int kGateBlocks = 4;                  // backward on the grid: a cluster, a gate each
// The blocks of a cluster with several sequence tiles are a multiple of:
constexpr int kTiledCluster = 4;

// The sizes that are fixed when a kernel is compiled.
struct Tiling {
  int row_tiles;    // of the weights: block and cluster, of a warp; grid, of a block
  int depth_tiles;  // of a warp. Block and cluster: the whole depth; grid: an eighth of it
  // Depth tiles of the input, multiplied in the same GEMM; 0: a GEMM ahead. Of a stack as many as
  // depth_tiles: of the layer before, or backward of the gradients of the layer after.
  int input_tiles;
  int sequence_tiles;  // of a slice, at most; batched: of a group of sequences
  // Of a warp's fragments (fragments.h) so many stay in registers, the others in shared memory: as
  // many as leave no register spilled.
  int resident;
  // Backward on the grid: by scattered sums, without clusters (scatter_backward.h), row and depth
  // tiles as a cluster's.
  bool scatter;
  // On the grid: slices of any number of groups of sequences, a step of one after a step of
  // another, so that the exchange of a group's states hides behind the others' work.
  bool batched;

  // Layers at once, each awaiting what the one before it has of a step.
  constexpr bool stacked() const { return input_tiles == depth_tiles; }
  constexpr int fragments() const { return row_tiles * (depth_tiles + input_tiles); }
  friend constexpr bool operator==(const Tiling& a, const Tiling& b) {
    return a.row_tiles == b.row_tiles && a.depth_tiles == b.depth_tiles &&
           a.input_tiles == b.input_tiles && a.sequence_tiles == b.sequence_tiles &&
           a.scatter == b.scatter && a.batched == b.batched;
  }
};

// How a layer's products are made by matrix instructions.
enum class Precision {
  bits16,      // of float16 or bfloat16
  tf32,        // float32 in TF32
  tf32_split,  // float32 in three products of TF32 numbers
};
// Of elements of so many bytes, 2 or 4; tensor_cores: float32 in TF32.
constexpr Precision precision_of(int element_bytes, bool tensor_cores) {
  return element_bytes == 2 ? Precision::bits16
         : tensor_cores     ? Precision::tf32
                            : Precision::tf32_split;
}
constexpr int element_bytes(Precision precision) { return precision == Precision::bits16 ? 2 : 4; }
constexpr int fragment_words(Precision precision) {
  return precision == Precision::tf32_split ? 8 : 4;
}

// The tilings that are compiled, the first that fits being the smallest.
struct Tilings {
  Tiling list[16];
  int count;
};
constexpr Tilings block_tilings(Precision precision, bool backward) {
  if (precision == Precision::bits16) {
    if (backward) return {{{1, 16, 0, 1, 16}, {1, 32, 0, 1, 8}, {1, 16, 16, 1, 18}}, 3};
    return {{{2, 4, 2, 1, 12}, {2, 4, 0, 1, 8}, {4, 8, 0, 1, 20}, {2, 4, 4, 1, 16}}, 4};
  }
  if (precision == Precision::tf32) {
    if (backward) return {{{1, 32, 0, 1, 8}, {1, 32, 32, 1, 20}}, 2};
    return {{{2, 8, 2, 1, 20}, {2, 8, 0, 1, 16}, {2, 8, 8, 1, 20}}, 3};
  }
  if (backward) return {{{1, 32, 0, 1, 8}}, 1};
  return {{{2, 8, 2, 1, 14}, {2, 8, 0, 1, 16}}, 2};
}
constexpr Tilings cluster_tilings(Precision precision, bool backward) {
  if (precision == Precision::bits16) {
    if (backward) {
      return {{{1, 8, 0, 1, 8},
               {2, 8, 0, 1, 16},
               {4, 8, 0, 1, 24},
               {2, 8, 0, 2, 16},
               {4, 8, 0, 2, 20},
               {1, 8, 8, 1, 16},
               {2, 8, 8, 1, 24},
               {4, 8, 8, 1, 18}},
              8};
    }
    return {{{1, 8, 0, 1, 8},
             {1, 16, 0, 1, 16},
             {2, 16, 0, 1, 32},
             {1, 32, 0, 1, 32},
             {2, 16, 0, 2, 8},
             {1, 32, 0, 2, 28},
             {1, 8, 8, 1, 16},
             {1, 16, 16, 1, 28},
             {1, 32, 32, 1, 28}},
            9};
  }
  if (precision == Precision::tf32) {
    if (backward) {
      return {{{1, 16, 0, 1, 16},
               {2, 16, 0, 1, 28},
               {4, 16, 0, 1, 28},
               {2, 16, 0, 2, 24},
               {1, 16, 16, 1, 24},
               {2, 16, 16, 1, 24}},
              6};
    }
    return {{{1, 16, 0, 1, 16},
             {1, 32, 0, 1, 32},
             {1, 64, 0, 1, 32},
             {1, 32, 0, 2, 32},
             {1, 64, 0, 2, 32},
             {1, 16, 16, 1, 28},
             {1, 32, 32, 1, 24}},
            7};
  }
  if (backward) return {{{1, 16, 0, 1, 14}, {2, 16, 0, 1, 14}}, 2};
  return {{{1, 16, 0, 1, 16}, {1, 32, 0, 1, 16}}, 2};
}
// Backward on the grid without clusters.
constexpr Tilings scatter_tilings(Precision precision) {
  if (precision == Precision::bits16) {
    return {{{2, 8, 0, 1, 16, true},
             {4, 8, 0, 1, 28, true},
             {6, 8, 0, 1, 27, true},
             {8, 4, 0, 1, 28, true},
             {8, 6, 0, 1, 24, true},
             {8, 8, 0, 1, 25, true},
             {4, 8, 0, 1, 28, true, true},
             {6, 8, 0, 1, 27, true, true},
             {8, 6, 0, 1, 24, true, true},
             {8, 8, 0, 1, 28, true, true},
             {12, 4, 0, 1, 24, true, true},
             {12, 6, 0, 1, 20, true, true}},
            12};
  }
  if (precision == Precision::tf32) {
    return {{{2, 16, 0, 1, 28, true},
             {4, 8, 0, 1, 28, true},
             {4, 16, 0, 1, 28, true},
             {6, 8, 0, 1, 27, true},
             {8, 8, 0, 1, 27, true},
             {4, 8, 0, 1, 28, true, true},
             {4, 16, 0, 1, 25, true, true},
             {8, 8, 0, 1, 27, true, true}},
            8};
  }
  return {{{2, 8, 0, 1, 12, true},
           {4, 4, 0, 1, 12, true},
           {4, 8, 0, 1, 13, true},
           {4, 8, 0, 1, 12, true, true}},
          4};
}
constexpr Tilings clustered_grid_tilings(Precision precision, bool backward) {
  if (precision == Precision::bits16) {
    if (backward) {
      return {{{4, 6, 0, 1, 24}, {5, 8, 0, 1, 20}, {4, 16, 0, 1, 20}}, 3};
    }
    return {{{4, 6, 0, 1, 24},
             {4, 8, 0, 1, 30},
             {4, 16, 0, 1, 20},
             {4, 6, 0, 2, 20, false, true},
             {4, 8, 0, 2, 20, false, true},
             {4, 12, 0, 2, 17, false, true},
             {4, 16, 0, 2, 18, false, true}},
            7};
  }
  if (precision == Precision::tf32) {
    if (backward) return {{{4, 12, 0, 1, 24}, {4, 16, 0, 1, 20}, {3, 24, 0, 1, 23}}, 3};
    return {{{4, 12, 0, 1, 24},
             {4, 16, 0, 1, 20},
             {3, 24, 0, 1, 23},
             {2, 12, 0, 2, 16, false, true},
             {4, 12, 0, 2, 16, false, true},
             {4, 16, 0, 2, 18, false, true},
             {3, 24, 0, 1, 20, false, true}},
            7};
  }
  if (backward) return {{{2, 12, 0, 1, 11}, {2, 16, 0, 1, 10}}, 2};
  return {{{2, 12, 0, 1, 11},
           {2, 16, 0, 1, 10},
           {2, 12, 0, 1, 10, false, true},
           {2, 16, 0, 1, 9, false, true}},
          4};
}
constexpr Tilings grid_tilings(Precision precision, bool backward) {
  Tilings all = clustered_grid_tilings(precision, backward);
  if (!backward) return all;
  const Tilings more = scatter_tilings(precision);
  for (int i = 0; i < more.count; ++i) all.list[all.count++] = more.list[i];
  return all;
}
constexpr Tilings tilings(Kernel kernel, Precision precision, bool backward) {
  return kernel == Kernel::block     ? block_tilings(precision, backward)
         : kernel == Kernel::cluster ? cluster_tilings(precision, backward)
                                     : grid_tilings(precision, backward);
}

struct Placement {
  int blocks;     // of a block group, which shares the hidden units of a slice
  int units;      // hidden units of each block
  int slices;     // of the batch: each has a block group of its own
  int sequences;  // of a slice
  Tiling tiling;
};

// Of the sequences of a slice, those that a block multiplies at once; and room for whole groups.
FUSED_LSTM_INLINE constexpr int group_sequences(const Tiling& tiling) {
  return tiling.sequence_tiles * kTileSequences;
}
FUSED_LSTM_INLINE constexpr int groups_of(const Placement& placement) {
  const int group = group_sequences(placement.tiling);
  return placement.tiling.batched ? (placement.sequences + group - 1) / group : 1;
}

// Offsets and sizes of shared memory in bytes.
struct SharedLayout {
  int weights;   // fragments beyond the registers
  int operand;   // block, cluster and scatter: the operand of the next GEMM
  int partials;  // sums over parts of the depth: [parts, rows, sequences], as each kernel has them
  int received;  // backward: sums that other blocks have sent
  int states;    // batched: of each group, unit and sequence, as each kernel has them
  int begun;     // batched, forward: of each group, the step that it began with
  int barriers;  // two, of what other blocks of the cluster send
  int total;
};

FUSED_LSTM_INLINE constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

constexpr int kOperandPairBytes = 512;  // mma.h: two depth tiles of 8 sequences
// Of one buffer of the operand of a slice.
FUSED_LSTM_INLINE constexpr int operand_bytes(int depth_tiles, int sequence_tiles) {
  return depth_tiles / 2 * sequence_tiles * kOperandPairBytes;
}
// Floats between the sums of two sequences in `partials` of the grid's kernels: sums of a warp lie
// in different banks.
FUSED_LSTM_INLINE constexpr int partial_stride(int row_tiles) { return row_tiles * kTileRows + 4; }

// Buffers of the partial sums of batched tilings: one where a warp has fragments enough to fill the
// shared memory.
FUSED_LSTM_INLINE constexpr int partial_buffers(int fragments) { return fragments > 40 ? 1 : 2; }

constexpr int kPairStateBytes = 16;  // batched backward: of a pair of unit and sequence

// Blocks of `units` hidden units that a block of scatter_backward.h can receive sums from.
FUSED_LSTM_INLINE constexpr int scatter_senders(int row_tiles, int units) {
  return (row_tiles * kBlockWarps * kTileRows + units - 1) / units;
}

constexpr SharedLayout make_layout(Kernel kernel, bool backward, const Placement& placement,
                                   Precision precision) {
  const Tiling& t = placement.tiling;
  const int words = fragment_words(precision);
  const int spilled = t.fragments() - t.resident;
  const int sequences = t.sequence_tiles * kTileSequences;
  SharedLayout l = {};
  int end = 0;
  const auto take = [&end](int bytes) {
    const int at = end;
    end += bytes;
    return at;
  };
  l.weights = take(spilled * kBlockThreads * words * 4);
  if (t.scatter) {
    l.operand = take(2 * operand_bytes(t.depth_tiles, t.sequence_tiles));
    if (t.batched) {
      l.states = take(groups_of(placement) * sequences * placement.units * kPairStateBytes);
    }
    l.total = end;
    return l;
  }
  if (kernel == Kernel::grid) {
    const int buffers = t.batched ? partial_buffers(t.fragments()) : 2;
    l.partials = take(buffers * kBlockWarps * sequences * partial_stride(t.row_tiles) * 4);
    if (t.batched) {
      l.states = take(groups_of(placement) * kBlockThreads * 8);
      l.begun = take(static_cast<int>(round_up(groups_of(placement) * 4, 16)));
    }
    if (backward) l.received = take(2 * kGateBlocks * sequences * placement.units * 4);
  } else if (backward) {
    const int buffers = kernel == Kernel::cluster ? 2 : 1;
    l.operand = take(buffers * operand_bytes(t.depth_tiles + t.input_tiles, t.sequence_tiles));
    l.received = take(buffers * placement.blocks * placement.units * sequences * 4);
  } else {
    l.operand = take(2 * operand_bytes(t.depth_tiles + t.input_tiles, t.sequence_tiles));
  }
  l.barriers = take(2 * 8);
  l.total = end;
  return l;
}

// 32-bit words of one buffer through which the blocks of a block group of the grid hand the operand
// to one another. Forward: elements as the matrix instruction takes them; backward: each gate's
// gradients in float32, or without clusters sums of each sender.
constexpr int64_t exchange_words(bool backward, const Placement& placement, Precision precision) {
  const Tiling& t = placement.tiling;
  const int sequences = groups_of(placement) * group_sequences(t);
  if (t.scatter) {
    return static_cast<int64_t>(placement.blocks) * scatter_senders(t.row_tiles, placement.units) *
           placement.units * sequences;
  }
  const int64_t elements = static_cast<int64_t>(kBlockWarps) * t.depth_tiles * kDepthBytes /
                           element_bytes(precision) * sequences;
  return backward ? kGates * elements : elements * element_bytes(precision) / 4;
}

}  // namespace fused_lstm
