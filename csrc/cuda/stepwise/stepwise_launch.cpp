// The stepwise passes: for each step one cuBLAS GEMM (two with a projection), then a kernel of
// params.h. And the recomputation: two GEMMs over all steps, then one kernel.
#include <ATen/cuda/CUDAContext.h>

#include "cuda/cublas.h"
#include "cuda/passes.h"
#include "cuda/stepwise/params.h"
#include "cuda/upload.h"

namespace fused_lstm {
namespace cuda {
namespace {

void check_launch(cudaError_t error, const char* what, const Sizes& s) {
  TORCH_CHECK(error == cudaSuccess, "fused_lstm: the ", what, " launch of the stepwise kernels (T ",
              s.T, ", B ", s.B, ", H ", s.H, ", P ", s.P, ") failed: ", cudaGetErrorString(error));
}

// Where the types agree, the gates overwrite the preactivations; else these have memory of their
// own.
at::Tensor allocate_preactivations(const Sizes& s, const at::Tensor& gates, int64_t d,
                                   const at::TensorOptions& accums) {
  if (gates.defined() && gates.scalar_type() == accums.dtype()) {
    return gates.select(0, d).view({s.N, 4 * s.H});
  }
  return allocate({s.N, 4 * s.H}, accums);
}

template <class Types>
StepwiseForwardParams<Types> stepwise_params(const ForwardParams<Types>& layer, const Weights& w,
                                             const at::Tensor& preactivations) {
  using Storage = typename Types::Storage;
  StepwiseForwardParams<Types> p = {};
  p.layer = layer;
  p.preactivations = pointer<typename Types::Accum>(preactivations);
  p.bias_ih = pointer<Storage>(w.bias_ih);
  p.bias_hh = pointer<Storage>(w.bias_hh);
  return p;
}

}  // namespace

void stepwise_forward(const Sequence& sequence, const ForwardTensors& layer, const Plan& plan) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const at::ScalarType storage = layer.output.scalar_type();
  const at::ScalarType accum = accum_type(storage);
  const Cublas gemm(storage, plan.tensor_cores);
  const at::TensorOptions operands = layer.output.options();
  const at::TensorOptions accums = operands.dtype(accum);

  const at::Tensor hidden = allocate({s.B, s.P}, operands);
  const at::Tensor cell_state = allocate({s.B, s.H}, accums);
  at::Tensor unprojected, projection;
  if (s.projected) {
    unprojected = allocate({s.B, s.H}, operands);
    projection = allocate({s.B, s.P}, accums);
  }
  const at::Tensor input = layer.input.view({s.N, s.D});

  with_types(storage, [&](auto types) {
    using Types = decltype(types);
    using Accum = typename Types::Accum;
    using Operand = typename Types::Operand;
    for (int64_t d = 0; d < s.directions; ++d) {
      const Weights& w = layer.weights[d];
      at::Tensor preactivations = allocate_preactivations(s, layer.gates, d, accums);  // [N, 4H]
      gemm(preactivations, input, w.ih.t(), /*accumulate=*/false);
      auto p = stepwise_params(forward_params<Types>(sequence, layer, d), w, preactivations);
      p.layer.hidden_stride = s.P;
      p.layer.cell_state = pointer<Accum>(cell_state);
      p.layer.unprojected = pointer<Operand>(unprojected);
      p.layer.projection = pointer<Accum>(projection);
      p.hidden = pointer<Operand>(hidden);
      using Launch = StepwiseLaunch<Types>;
      check_launch(Launch::start(p, make_step(p.layer.steps, 0), stream), "first", s);
      for (int64_t index = 0; index < s.T; ++index) {
        const Step step = make_step(p.layer.steps, index);
        gemm(pointer<Accum>(preactivations) + step.offset * 4 * s.H, accum, step.rows, 4 * s.H, s.P,
             {p.hidden, s.P, false}, {w.hh.const_data_ptr(), s.P, true}, /*accumulate=*/true);
        check_launch(Launch::forward(p, step, stream), "forward", s);
        if (s.projected) {
          gemm(p.layer.projection, accum, step.rows, s.P, s.H, {p.layer.unprojected, s.H, false},
               {w.hr.const_data_ptr(), s.H, true}, /*accumulate=*/false);
          check_launch(Launch::emit(p, step, stream), "projection", s);
        }
      }
    }
  });
}

void stepwise_backward(const Sequence& sequence, const BackwardTensors& layer, const Plan& plan) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const at::ScalarType storage = layer.gates.scalar_type();
  const at::ScalarType accum = accum_type(storage);
  const Cublas gemm(storage, plan.tensor_cores);
  const at::TensorOptions accums = layer.cells.options();
  at::Tensor grad_hidden = layer.grad_hidden, grad_cell = layer.grad_cell, grad_unprojected;
  if (!grad_hidden.defined()) grad_hidden = allocate_zeros({s.directions, s.B, s.P}, accums);
  if (!grad_cell.defined()) grad_cell = allocate_zeros({s.directions, s.B, s.H}, accums);
  if (s.projected) grad_unprojected = allocate({s.B, s.H}, accums);

  with_types(storage, [&](auto types) {
    using Types = decltype(types);
    using Launch = StepwiseLaunch<Types>;
    for (int64_t d = 0; d < s.directions; ++d) {
      const Weights& w = layer.weights[d];
      BackwardParams<Types> p = backward_params<Types>(sequence, layer, d);
      p.grad_hidden = pointer<typename Types::Accum>(grad_hidden, d);
      p.grad_cell = pointer<typename Types::Accum>(grad_cell, d);
      p.grad_unprojected = pointer<typename Types::Accum>(grad_unprojected);
      for (int64_t index = s.T - 1; index >= 0; --index) {
        const Step step = make_step(p.steps, index);
        if (s.projected) {
          check_launch(Launch::collect(p, step, stream), "gradient projection", s);
          gemm(p.grad_unprojected, accum, step.rows, s.H, s.P,
               {p.grad_projection + step.offset * s.P, s.P, false},
               {w.hr.const_data_ptr(), s.H, false}, /*accumulate=*/false);
        }
        check_launch(Launch::backward(p, step, stream), "backward", s);
        gemm(p.grad_hidden, accum, step.rows, s.P, 4 * s.H,
             {p.grad_preactivations + step.offset * 4 * s.H, 4 * s.H, false},
             {w.hh.const_data_ptr(), s.P, false}, /*accumulate=*/true);
      }
    }
  });
}

void recompute(const Sequence& sequence, const BackwardTensors& layer) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const at::ScalarType storage = layer.gates.scalar_type();
  const at::TensorOptions accums = layer.cells.options();
  const Cublas gemm(storage, allows_tf32());
  const at::Tensor input = layer.input.view({s.N, s.D});
  const at::Tensor last_cell = allocate({s.B, s.H}, accums);  // c_n, which is not read
  at::Tensor offsets;                                         // [T + 1], if packed
  if (s.packed) {
    offsets = allocate({s.T + 1}, accums.dtype(at::kLong));
    check_launch(upload(sequence.offsets.data(), s.T + 1, pointer<int64_t>(offsets), stream),
                 "upload", s);
  }

  with_types(storage, [&](auto types) {
    using Types = decltype(types);
    using Storage = typename Types::Storage;
    using Accum = typename Types::Accum;
    for (int64_t d = 0; d < s.directions; ++d) {
      const Weights& w = layer.weights[d];
      at::Tensor preactivations = allocate_preactivations(s, layer.gates, d, accums);  // [N, 4H]
      gemm(preactivations, input, w.ih.t(), /*accumulate=*/false);
      if (layer.h_prev.defined()) {
        BackwardParams<Types> h_prev = backward_params<Types>(sequence, layer, d);
        h_prev.steps.offsets = pointer<int64_t>(offsets);
        check_launch(StepwiseLaunch<Types>::h_prev(h_prev, stream), "recomputing", s);
        gemm(preactivations, layer.h_prev.select(0, d), w.hh.t(), /*accumulate=*/true);
      } else {
        for (const EnteringRows& part : entering_rows(sequence, layer, d)) {
          at::Tensor rows = preactivations.narrow(0, part.first, part.hidden.size(0));
          gemm(rows, part.hidden, w.hh.t(), /*accumulate=*/true);
        }
      }
      auto p =
          stepwise_params(common_params<ForwardParams<Types>, Storage, Accum>(sequence, layer, d),
                          w, preactivations);
      p.layer.steps.offsets = pointer<int64_t>(offsets);
      p.layer.c_n = {nullptr, pointer<Accum>(last_cell)};
      check_launch(StepwiseLaunch<Types>::states(p, stream), "recomputing", s);
    }
  });
}

}  // namespace cuda
}  // namespace fused_lstm
