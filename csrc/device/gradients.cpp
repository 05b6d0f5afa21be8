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

std::vector<EnteringRows> entering_rows(const Sequence& sequence, const BackwardTensors& layer,
                                        int64_t d) {
  const Sizes& s = sequence.sizes;
  const int64_t later = s.N - s.B;  // rows after a direction's first step
  std::vector<EnteringRows> parts;
  if (layer.h_0.defined()) parts.push_back({d == 0 ? 0 : later, layer.h_0.select(0, d)});
  if (layer.output.defined()) {
    const at::Tensor output = layer.output.view({s.N, s.directions * s.P});
    parts.push_back(
        {d == 0 ? s.B : 0, output.narrow(0, d == 0 ? 0 : s.B, later).narrow(1, d * s.P, s.P)});
  }
  return parts;
}

void Device::bias_gradients(const at::Tensor& grad, Weights& weights) const {
  weights.bias_ih = grad.sum(0, /*keepdim=*/false, accum_type(grad.scalar_type()));
  weights.bias_hh = weights.bias_ih.clone();
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
    if (layer.h_prev.defined()) {
      w.hh = gradient(grad, layer.h_prev.select(0, d));
    } else {
      const std::vector<EnteringRows> parts = entering_rows(sequence, layer, d);
      w.hh = parts.empty() ? allocate_zeros({4 * s.H, s.P}, operands)
                           : allocate({4 * s.H, s.P}, operands);
      for (size_t i = 0; i < parts.size(); ++i) {
        const at::Tensor& hidden = parts[i].hidden;
        gemm(w.hh, grad.narrow(0, parts[i].first, hidden.size(0)).t(), hidden,
             /*accumulate=*/i > 0);
      }
    }
    if (s.biases) bias_gradients(grad, w);
    if (s.projected) {
      w.hr = gradient(layer.grad_projection.select(0, d), layer.unprojected.select(0, d));
    }
    all.push_back(w);
  }
  return all;
}

}  // namespace fused_lstm
