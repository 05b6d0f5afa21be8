// The launch of the kernel that has a tiling, among those that are compiled for a layer's types.
// Free of torch.
#pragma once

#include <utility>

#include "cuda/persistent/backward.h"
#include "cuda/persistent/batched_backward.h"
#include "cuda/persistent/batched_forward.h"
#include "cuda/persistent/forward.h"
#include "cuda/persistent/grid_backward.h"
#include "cuda/persistent/grid_forward.h"
#include "cuda/persistent/launch_config.h"
#include "cuda/persistent/scatter_backward.h"

namespace fused_lstm {
namespace cuda {
namespace {

// The kernel of a tiling, by its place in the list.
template <class Mma, Precision precision, Kernel kernel, bool kBackward, int kIndex, bool kRagged>
constexpr auto kernel_of() {
  constexpr Tiling t = tilings(kernel, precision, kBackward).list[kIndex];
  if constexpr (t.scatter && t.batched) {
    return batched_backward_kernel<Mma, t.row_tiles, t.depth_tiles, t.resident>;
  } else if constexpr (t.scatter) {
    return scatter_backward_kernel<Mma, t.row_tiles, t.depth_tiles, kRagged, t.resident>;
  } else if constexpr (kernel == Kernel::grid && kBackward) {
    return grid_backward_kernel<Mma, t.row_tiles, t.depth_tiles, kRagged, t.resident>;
  } else if constexpr (t.batched) {
    return batched_forward_kernel<Mma, t.row_tiles, t.depth_tiles, t.sequence_tiles, kRagged,
                                  t.resident>;
  } else if constexpr (kernel == Kernel::grid) {
    return grid_forward_kernel<Mma, t.row_tiles, t.depth_tiles, kRagged, t.resident>;
  } else if constexpr (kBackward) {
    return backward_kernel<Mma, t.row_tiles, t.depth_tiles, t.input_tiles, t.sequence_tiles,
                           kernel == Kernel::cluster, kRagged, t.resident>;
  } else {
    return forward_kernel<Mma, t.row_tiles, t.depth_tiles, t.input_tiles, t.sequence_tiles,
                          kernel == Kernel::cluster, kRagged, t.resident>;
  }
}

template <Kernel kernel, bool kBackward, class Params>
cudaError_t launch_placed(void (*function)(Params), const Params& params, cudaStream_t stream) {
  const Placement& placement = params.placement;
  const int64_t blocks = static_cast<int64_t>(params.parts) * placement.slices * placement.blocks;
  // Layers of a stack and the blocks of a grid wait for one another: all of them run, or none does.
  Together together = {0, placement.tiling.stacked()};
  if (kernel == Kernel::cluster) together.cluster = placement.blocks;
  if (kernel == Kernel::grid) {
    together.cooperative = true;
    if (kBackward && !placement.tiling.scatter) together.cluster = kGateBlocks;
  }
  return launch(function, params, blocks, kBlockThreads, params.layout.total, together, stream);
}

// Whether the caller has gradients of cell states and gates, which only the kernels of ragged
// sequences take.
template <class Types>
bool has_output_gradients(const BackwardParams<Types>& layer) {
  return layer.grad_cells || layer.grad_gates;
}
template <class Types>
bool has_output_gradients(const ForwardParams<Types>&) {
  return false;
}

// Of slices of several tiles of sequences, of stacks, and backward of groups, only the kernels of
// ragged sequences are compiled.
template <class Mma, Precision precision, Kernel kernel, bool kBackward, class Params,
          int... indices>
cudaError_t launch_tiling(const Params& params, cudaStream_t stream,
                          std::integer_sequence<int, indices...>) {
  const auto& layer = params.layer[0];
  const bool ragged = layer.steps.offsets || layer.boundaries.lengths || layer.boundaries.reset ||
                      has_output_gradients(layer);
  cudaError_t error = cudaErrorInvalidConfiguration;  // of a tiling that is not compiled
  const auto each = [&](auto index) {
    constexpr int i = decltype(index)::value;
    constexpr Tiling t = tilings(kernel, precision, kBackward).list[i];
    if (!(t == params.placement.tiling)) return;
    constexpr bool ragged_alone = t.batched ? t.scatter : t.sequence_tiles > 1 || t.stacked();
    if (ragged_alone || ragged) {
      error = launch_placed<kernel, kBackward>(
          kernel_of<Mma, precision, kernel, kBackward, i, true>(), params, stream);
    } else {
      error = launch_placed<kernel, kBackward>(
          kernel_of<Mma, precision, kernel, kBackward, i, ragged_alone>(), params, stream);
    }
  };
  (each(std::integral_constant<int, indices>{}), ...);
  return error;
}

template <class Mma, Precision precision, bool kBackward, class Params>
cudaError_t launch_persistent(Kernel kernel, const Params& params, cudaStream_t stream) {
  const auto launch_of = [&](auto its) {
    constexpr Kernel k = decltype(its)::value;
    return launch_tiling<Mma, precision, k, kBackward>(
        params, stream, std::make_integer_sequence<int, tilings(k, precision, kBackward).count>{});
  };
  switch (kernel) {
    case Kernel::block:
      return launch_of(std::integral_constant<Kernel, Kernel::block>{});
    case Kernel::cluster:
      return launch_of(std::integral_constant<Kernel, Kernel::cluster>{});
    default:
      return launch_of(std::integral_constant<Kernel, Kernel::grid>{});
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
