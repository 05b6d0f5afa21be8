// The launch of the kernel that has a tiling, among those that are compiled for a layer's types. Free
// of torch.
#pragma once

#include <utility>

#include "cuda/persistent/launch_config.h"
#include "cuda/persistent/backward.h"
#include "cuda/persistent/forward.h"
#include "cuda/persistent/grid_backward.h"
#include "cuda/persistent/grid_forward.h"

namespace fused_lstm {
namespace cuda {
namespace {

// Calls body(index), a compile-time constant, for the tiling's place in the list.
template <int... indices, class Body>
cudaError_t with_index(const Tilings& list, const Tiling& tiling,
                       std::integer_sequence<int, indices...>, const Body& body) {
  cudaError_t error = cudaErrorInvalidConfiguration;  // of a plan with a tiling that is not compiled
  const auto each = [&](auto index) {
    if (list.list[index] == tiling) error = body(index);
  };
  (each(std::integral_constant<int, indices>{}), ...);
  return error;
}

// Calls body(kernel) with the kernel for the tiling.
template <class Mma, Precision precision, class Body>
cudaError_t with_forward_kernel(Kernel kernel, const Tiling& tiling, const Body& body) {
  if (kernel == Kernel::grid) {
    constexpr Tilings list = grid_tilings(precision, false);
    return with_index(list, tiling, std::make_integer_sequence<int, list.count>{}, [&](auto i) {
      constexpr Tiling t = grid_tilings(precision, false).list[i];
      return body(grid_forward_kernel<Mma, t.row_tiles, t.depth_tiles, t.sequence_tiles>);
    });
  }
  if (kernel == Kernel::cluster) {
    constexpr Tilings list = cluster_tilings(precision, false);
    return with_index(list, tiling, std::make_integer_sequence<int, list.count>{}, [&](auto i) {
      constexpr Tiling t = cluster_tilings(precision, false).list[i];
      return body(forward_kernel<Mma, t.row_tiles, t.depth_tiles, t.input_tiles, true>);
    });
  }
  constexpr Tilings list = block_tilings(precision, false);
  return with_index(list, tiling, std::make_integer_sequence<int, list.count>{}, [&](auto i) {
    constexpr Tiling t = block_tilings(precision, false).list[i];
    return body(forward_kernel<Mma, t.row_tiles, t.depth_tiles, t.input_tiles, false>);
  });
}

template <class Mma, Precision precision, class Body>
cudaError_t with_backward_kernel(Kernel kernel, const Tiling& tiling, const Body& body) {
  if (kernel == Kernel::grid) {
    constexpr Tilings list = grid_tilings(precision, true);
    return with_index(list, tiling, std::make_integer_sequence<int, list.count>{}, [&](auto i) {
      constexpr Tiling t = grid_tilings(precision, true).list[i];
      return body(grid_backward_kernel<Mma, t.row_tiles, t.depth_tiles, t.sequence_tiles>);
    });
  }
  if (kernel == Kernel::cluster) {
    constexpr Tilings list = cluster_tilings(precision, true);
    return with_index(list, tiling, std::make_integer_sequence<int, list.count>{}, [&](auto i) {
      constexpr Tiling t = cluster_tilings(precision, true).list[i];
      return body(backward_kernel<Mma, t.row_tiles, t.depth_tiles, true>);
    });
  }
  constexpr Tilings list = block_tilings(precision, true);
  return with_index(list, tiling, std::make_integer_sequence<int, list.count>{}, [&](auto i) {
    constexpr Tiling t = block_tilings(precision, true).list[i];
    return body(backward_kernel<Mma, t.row_tiles, t.depth_tiles, false>);
  });
}

template <class Params>
cudaError_t launch_placed(void (*function)(Params), Kernel kernel, int gate_blocks,
                          const Params& params, cudaStream_t stream) {
  const Placement& placement = params.placement;
  const int64_t blocks =
      static_cast<int64_t>(params.directions) * placement.slices * placement.blocks;
  // The blocks of a grid wait for one another: all of them run, or none does.
  const Together together = kernel == Kernel::grid ? Together{gate_blocks, true}
                            : kernel == Kernel::cluster ? Together{placement.blocks, false}
                                                        : Together{0, false};
  return launch(function, params, blocks, kBlockThreads, params.layout.total, together, stream);
}

template <class Mma, Precision precision>
cudaError_t launch_forward_as(Kernel kernel,
                              const PersistentForwardParams<typename Mma::Types>& params,
                              cudaStream_t stream) {
  return with_forward_kernel<Mma, precision>(
      kernel, params.placement.tiling,
      [&](auto function) { return launch_placed(function, kernel, 0, params, stream); });
}
template <class Mma, Precision precision>
cudaError_t launch_backward_as(Kernel kernel,
                               const PersistentBackwardParams<typename Mma::Types>& params,
                               cudaStream_t stream) {
  return with_backward_kernel<Mma, precision>(
      kernel, params.placement.tiling,
      [&](auto function) { return launch_placed(function, kernel, kGateBlocks, params, stream); });
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
