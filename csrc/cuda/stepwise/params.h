// The CUDA kernels of the stepwise passes: one launch for each step, after its GEMM; and of the
// recomputation, which knows every step's GEMM beforehand. Free of torch.
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
  // [N, 4H] x W_ih^T + h W_hh^T of each step; may be the memory of layer.gates
  const typename Types::Accum* preactivations;
  const typename Types::Storage* bias_ih;  // [4H], or null
  const typename Types::Storage* bias_hh;  // [4H], or null
  typename Types::Operand* hidden;         // [B, P] the operand of the next step's GEMM
};

template <class Types>
struct StepwiseLaunch {
  using Forward = StepwiseForwardParams<Types>;
  using Backward = BackwardParams<Types>;

  // The state that enters the first step: p.hidden and p.layer.cell_state.
  static cudaError_t start(const Forward& p, const Step& first, cudaStream_t stream);
  // Gates, c and, without a projection, h of every unit of one step.
  static cudaError_t forward(const Forward& p, const Step& step, cudaStream_t stream);
  // h of one step from p.layer.projection.
  static cudaError_t emit(const Forward& p, const Step& step, cudaStream_t stream);

  // The gradient of h of one step into p.grad_projection.
  static cudaError_t collect(const Backward& p, const Step& step, cudaStream_t stream);
  // The gradients of the preactivations and of c of one step; with a projection, from
  // p.grad_unprojected.
  static cudaError_t backward(const Backward& p, const Step& step, cudaStream_t stream);

  // Of all steps, whose offsets lie in device memory: h_prev from the output, and the gates and
  // cells from the preactivations, with which one thread takes a unit of a sequence through time.
  static cudaError_t h_prev(const Backward& p, cudaStream_t stream);
  static cudaError_t states(const Forward& p, cudaStream_t stream);
};

// The architectures that the kernels were compiled for, 900 for compute capability 9.0.
std::vector<int> architectures();

}  // namespace cuda
}  // namespace fused_lstm
