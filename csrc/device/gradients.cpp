// The gradients of the input and of the weights by one GEMM over all steps for each weight, on any
// device that has GEMMs.
#include <ATen/ops/arange.h>

#include "device/device.h"

namespace fused_lstm {

at::Tensor masked_input(const Sequence& sequence, const at::Tensor& input) {
  const Sizes& s = sequence.sizes;
  if (!sequence.lengths) return input.view({s.N, s.D});
  const at::Tensor steps = at::arange(s.T, sequence.lengths->options()).unsqueeze(1);  // [T, 1]
  const at::Tensor past_end = steps.ge(*sequence.lengths).unsqueeze(2);                // [T, B, 1]
  return input.view({s.T, s.B, s.D}).masked_fill(past_end, 0).view({s.N, s.D});
}

at::Tensor Device::input_gradient(const Sequence& sequence, const BackwardTensors& layer) const {
  const Sizes& s = sequence.sizes;
  const at::Tensor& grad = layer.grad_preactivations;  // [directions, N, 4H]
  at::Tensor sum = allocate({s.N, s.D}, grad.options());
  for (int64_t d = 0; d < s.directions; ++d) {
    gemm(sum, grad.select(0, d), layer.weights[d].ih.to(grad.scalar_type()), /*accumulate=*/d > 0);
  }
  return sum;
}

std::vector<Weights> Device::weight_gradients(const Sequence& sequence,
                                              const BackwardTensors& layer) const {
  const Sizes& s = sequence.sizes;
  const at::TensorOptions operands = layer.grad_preactivations.options();
  const at::Tensor x = masked_input(sequence, layer.input).to(operands.dtype());  // [N, D]
  const auto gradient = [&](const at::Tensor& rows, const at::Tensor& columns) {
    at::Tensor grad = allocate({rows.size(1), columns.size(1)}, operands);
    gemm(grad, rows.t(), columns, /*accumulate=*/false);
    return grad;
  };
  std::vector<Weights> all;
  for (int64_t d = 0; d < s.directions; ++d) {
    const at::Tensor grad = layer.grad_preactivations.select(0, d);  // [N, 4H]
    Weights w;
    w.ih = gradient(grad, x);
    w.hh = gradient(grad, layer.h_prev.select(0, d));
    if (s.biases) {
      w.bias_ih = grad.sum(0, /*keepdim=*/false, accum_type(grad.scalar_type()));
      w.bias_hh = w.bias_ih.clone();
    }
    if (s.projected) {
      w.hr = gradient(layer.grad_projection.select(0, d), layer.unprojected.select(0, d));
    }
    all.push_back(w);
  }
  return all;
}

}  // namespace fused_lstm
