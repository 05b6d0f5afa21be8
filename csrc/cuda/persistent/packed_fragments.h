// The recurrent weights of a frozen layer, kept as its kernels have them: as fragments of mma.h, in
// the order in which the warps of a tiling load them.
//
//   [directions, blocks, row parts, depth parts, depth tiles, row tiles, 512 bytes]
//                        ------- warps --------  -- of a warp, kRows of fragments.h
//
// block and cluster: each of 8 warps has some of its block's rows, with input_tiles of weight_ih
// behind those of weight_hh; grid: an eighth of the depth. The 512 bytes are 16 for each lane: what
// it has of rows g and of g + 8, as they are stored. Zero outside the matrix.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "device/device.h"

namespace fused_lstm {
namespace cuda {

// The shape of the fragments that a kernel with this placement loads; says which one it is.
std::vector<int64_t> fragments_shape(Kernel kernel, const Placement& placement, int64_t directions);

// Those of weight_hh [4H, H] and, with input_tiles, of weight_ih [4H, D] of each direction.
at::Tensor pack_fragments(Kernel kernel, const Placement& placement,
                          const std::vector<Weights>& weights);

}  // namespace cuda
}  // namespace fused_lstm
