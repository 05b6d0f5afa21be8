// The CUDA kernels of the stepwise walk: one launch for each step, after its gemm. Free of
// torch.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "core/sequence.h"
#include "cuda/types.h"

namespace fused_lstm {
namespace cuda {

template <class Types>
struct StepwiseForwardParams {
  ForwardParams<Types> layer;
  // [N, 4H] both gemm of each step; may be the memory of layer.gates
  const typename Types::Accum* preactivations;
  const typename Types::Storage* bias_ih;  // [4H], or null
  const typename Types::Storage* bias_hh;  // [4H], or null
  typename Types::Operand* hidden;         // [B, P] what the next step's gemm reads
};

template <class Types>
struct Launch {
  // Gates, c and, without a projection, h of every unit of one step.
  static cudaError_t forward(const StepwiseForwardParams<Types>& params, const Step& step,
                             cudaStream_t stream);
  // h of one step from params.layer.projection.
  static cudaError_t emit(const StepwiseForwardParams<Types>& params, const Step& step,
                          cudaStream_t stream);
  // The gradient of h of one step into params.grad_projection.
  static cudaError_t collect(const BackwardParams<Types>& params, const Step& step,
                             cudaStream_t stream);
  // The gradients of the preactivations and of c of one step; with a projection, from
  // params.grad_unprojected.
  static cudaError_t backward(const BackwardParams<Types>& params, const Step& step,
                              cudaStream_t stream);
};

// The architectures that the kernels were compiled for, 900 for compute capability 9.0.
std::vector<int> architectures();

}  // namespace cuda
}  // namespace fused_lstm
