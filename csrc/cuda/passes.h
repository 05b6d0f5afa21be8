// The passes that launch.cpp chooses from: all steps of a layer, on the current stream. Nothing in
// them synchronizes.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/types.h"
#include "device/device.h"

namespace fused_lstm {
namespace cuda {

void stepwise_forward(const Sequence& sequence, const ForwardTensors& layer, const Plan& plan);
void stepwise_backward(const Sequence& sequence, const BackwardTensors& layer, const Plan& plan);
// Device::recompute.
void recompute(const Sequence& sequence, const BackwardTensors& layer);

// One layer, or plan.layers of a stack, whose first one `sequence` is of; plan.kernel is block,
// cluster or grid. They return why the driver refused the launch, after which another pass may run
// on the same tensors, or cudaSuccess.
cudaError_t persistent_forward(const Sequence& sequence, at::ArrayRef<ForwardTensors> layers,
                               const Plan& plan);
cudaError_t persistent_backward(const Sequence& sequence, at::ArrayRef<BackwardTensors> layers,
                                const Plan& plan);

// Calls body(Types) for a layer whose tensors have type `storage`.
template <class Body>
void with_types(at::ScalarType storage, const Body& body) {
  switch (storage) {
    case at::kFloat:
      return body(Float{});
    case at::kDouble:
      return body(Double{});
    case at::kHalf:
      return body(HalfFloat{});
    case at::kBFloat16:
      return body(BFloat16Float{});
    default:
      TORCH_CHECK(false, "fused_lstm: no CUDA kernel for dtype ", storage);
  }
}

}  // namespace cuda
}  // namespace fused_lstm
