#include "cuda/persistent/packed_fragments.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/stack.h>

namespace fused_lstm {
namespace cuda {
namespace {

constexpr int64_t kLaneBytes = 8;  // of a row
constexpr int64_t kFragmentBytes = kWarpThreads * 2 * kLaneBytes;
constexpr int64_t kLaneGroups = 8, kGroupLanes = 4;  // lane = 4 g + q

int64_t depth_tiles_of(const Tiling& tiling) { return tiling.depth_tiles + tiling.input_tiles; }

// Zeros behind the elements of a dimension up to `size`.
at::Tensor padded(const at::Tensor& tensor, int64_t dim, int64_t size) {
  std::vector<int64_t> pad(2 * (tensor.dim() - dim), 0);  // the last dimension's first
  pad.back() = size - tensor.size(dim);
  return pad.back() == 0 ? tensor : at::constant_pad_nd(tensor, pad);
}

// [4, blocks, units of a block, depth], gates i f g o, as the kernel's warps multiply it.
at::Tensor distributed(Kernel kernel, const Placement& placement, const Weights& weights) {
  const Tiling& t = placement.tiling;
  const int64_t H = weights.hh.size(1);
  const int64_t tile_elements = kDepthBytes / weights.hh.element_size();
  const int64_t depth_parts = kernel == Kernel::grid ? kBlockWarps : 1;
  at::Tensor all =
      padded(weights.hh.view({kGates, H, H}), 2, depth_parts * t.depth_tiles * tile_elements);
  if (t.input_tiles > 0) {
    const at::Tensor ih = weights.ih.view({kGates, H, weights.ih.size(1)});
    all = at::cat({all, padded(ih, 2, t.input_tiles * tile_elements)}, 2);
  }
  return padded(all, 1, placement.blocks * placement.units)
      .view({kGates, placement.blocks, placement.units, all.size(2)});
}

// Of one direction.
at::Tensor fragments_of(Kernel kernel, const Placement& placement, const Weights& weights) {
  const Tiling& t = placement.tiling;
  const int64_t blocks = placement.blocks, lane_elements = kLaneBytes / weights.hh.element_size();
  at::Tensor all = distributed(kernel, placement, weights);
  if (kernel == Kernel::grid) {
    // Row 4 unit + gate is neighbour_row of fragments.h.
    const int64_t neighbours = t.row_tiles % 2 == 0 ? 2 : 1;
    return all
        .permute({1, 2, 0, 3})  // [blocks, units, gates, depth]
        .reshape({blocks, t.row_tiles / neighbours, kLaneGroups, neighbours, /*half*/ 2,
                  kBlockWarps, t.depth_tiles / 2, kGroupLanes, /*parity*/ 2, lane_elements})
        .permute({0, 5, 6, 8, 1, 3, 2, 7, 4, 9});
  }
  // Row 4 gate + unit of a tile of 4 units: the upper half has gates g and o.
  return padded(all, 2, int64_t{kBlockWarps} * t.row_tiles * kTileUnits)
      .reshape({/*half*/ 2, /*gate of the half*/ 2, blocks, kBlockWarps, t.row_tiles, kTileUnits,
                depth_tiles_of(t) / 2, kGroupLanes, /*parity*/ 2, lane_elements})
      .permute({2, 3, 6, 8, 4, 1, 5, 7, 0, 9});
}

}  // namespace

std::vector<int64_t> fragments_shape(Kernel kernel, const Placement& placement,
                                     int64_t directions) {
  const Tiling& t = placement.tiling;
  const int64_t depth_parts = kernel == Kernel::grid ? kBlockWarps : 1;
  return {directions,  placement.blocks, kBlockWarps / depth_parts, depth_parts, depth_tiles_of(t),
          t.row_tiles, kFragmentBytes};
}

at::Tensor pack_fragments(Kernel kernel, const Placement& placement,
                          const std::vector<Weights>& weights) {
  std::vector<at::Tensor> all;
  for (const Weights& w : weights) {
    all.push_back(fragments_of(kernel, placement, w));
  }
  const auto shape = fragments_shape(kernel, placement, static_cast<int64_t>(weights.size()));
  return at::stack(all).view(at::kByte).view(shape);
}

}  // namespace cuda
}  // namespace fused_lstm
