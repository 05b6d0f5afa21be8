// The walk by one cuBLAS gemm and the kernels of stepwise.h for each step.
#include <ATen/cuda/CUDAContext.h>

#include "cuda/cublas.h"
#include "cuda/passes.h"
#include "cuda/stepwise/params.h"

namespace fused_lstm {
namespace cuda {
namespace {

void check_launch(cudaError_t error, const char* what, const Sizes& s) {
  TORCH_CHECK(error == cudaSuccess, "fused_lstm: the ", what, " launch of the stepwise kernels (T ",
              s.T, ", B ", s.B, ", H ", s.H, ", P ", s.P, ") failed: ", cudaGetErrorString(error));
}

}  // namespace

void stepwise_forward(const Sequence& sequence, const ForwardTensors& layer) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const at::ScalarType storage = layer.output.scalar_type();
  const at::ScalarType accum = accum_type(storage);
  const Cublas gemm(storage);
  const at::TensorOptions operands = layer.output.options();
  const at::TensorOptions accums = operands.dtype(accum);

  const at::Tensor hidden = layer.h_0.clone();
  const at::Tensor cell_state = layer.c_0.to(accum, /*non_blocking=*/false, /*copy=*/true);
  if (const auto from_zero = sequence.starts_from_zero()) {
    hidden.select(0, 0).masked_fill_(from_zero->unsqueeze(1), 0);
  }
  at::Tensor unprojected, projection;
  if (s.projected) {
    unprojected = allocate({s.B, s.H}, operands);
    projection = allocate({s.B, s.P}, accums);
  }
  // Where the types agree, the activations overwrite the preactivations.
  const bool in_place = layer.gates.defined() && storage == accum;
  const at::Tensor input = layer.input.view({s.N, s.D});

  with_types(storage, [&](auto types) {
    using Types = decltype(types);
    using Storage = typename Types::Storage;
    using Accum = typename Types::Accum;
    using Operand = typename Types::Operand;
    for (int64_t d = 0; d < s.directions; ++d) {
      const Weights& w = layer.weights[d];
      at::Tensor preactivations = in_place ? layer.gates.select(0, d).view({s.N, 4 * s.H})
                                           : allocate({s.N, 4 * s.H}, accums);  // [N, 4H]
      gemm(preactivations, input, w.ih.t(), /*accumulate=*/false);
      StepwiseForwardParams<Types> p = {};
      p.layer = forward_params<Types>(sequence, layer, d);
      p.layer.hidden_stride = s.P;
      p.layer.cell_state = pointer<Accum>(cell_state, d);
      p.layer.unprojected = pointer<Operand>(unprojected);
      p.layer.projection = pointer<Accum>(projection);
      p.preactivations = pointer<Accum>(preactivations);
      p.bias_ih = pointer<Storage>(w.bias_ih);
      p.bias_hh = pointer<Storage>(w.bias_hh);
      p.hidden = pointer<Operand>(hidden, d);
      for (int64_t index = 0; index < s.T; ++index) {
        const Step step = make_step(p.layer.steps, index);
        gemm(pointer<Accum>(preactivations) + step.offset * 4 * s.H, accum, step.rows, 4 * s.H, s.P,
             {p.hidden, s.P, false}, {w.hh.const_data_ptr(), s.P, true},
             /*accumulate=*/true);
        check_launch(Launch<Types>::forward(p, step, stream), "forward", s);
        if (s.projected) {
          gemm(p.layer.projection, accum, step.rows, s.P, s.H, {p.layer.unprojected, s.H, false},
               {w.hr.const_data_ptr(), s.H, true},
               /*accumulate=*/false);
          check_launch(Launch<Types>::emit(p, step, stream), "projection", s);
        }
      }
    }
  });
}

void stepwise_backward(const Sequence& sequence, const BackwardTensors& layer) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const at::ScalarType storage = layer.gates.scalar_type();
  const at::ScalarType accum = accum_type(storage);
  const Cublas gemm(storage);
  at::Tensor grad_unprojected;
  if (s.projected) grad_unprojected = allocate({s.B, s.H}, layer.grad_hidden.options());

  with_types(storage, [&](auto types) {
    using Types = decltype(types);
    for (int64_t d = 0; d < s.directions; ++d) {
      const Weights& w = layer.weights[d];
      BackwardParams<Types> p = backward_params<Types>(sequence, layer, d);
      p.grad_unprojected = pointer<typename Types::Accum>(grad_unprojected);
      for (int64_t index = s.T - 1; index >= 0; --index) {
        const Step step = make_step(p.steps, index);
        if (s.projected) {
          check_launch(Launch<Types>::collect(p, step, stream), "gradient projection", s);
          gemm(p.grad_unprojected, accum, step.rows, s.H, s.P,
               {p.grad_projection + step.offset * s.P, s.P, false},
               {w.hr.const_data_ptr(), s.H, false}, /*accumulate=*/false);
        }
        check_launch(Launch<Types>::backward(p, step, stream), "backward", s);
        gemm(p.grad_hidden, accum, step.rows, s.P, 4 * s.H,
             {p.grad_preactivations + step.offset * 4 * s.H, 4 * s.H, false},
             {w.hh.const_data_ptr(), s.P, false}, /*accumulate=*/true);
      }
    }
  });
}

}  // namespace cuda
}  // namespace fused_lstm
