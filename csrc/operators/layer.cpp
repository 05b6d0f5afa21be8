// What one call of the layer computes, the same for every device: checks, allocation, and the order
// of a device's passes.
#include "operators/layer.h"

#include <ATen/ops/zeros_like.h>

#include "device/pool.h"
#include "operators/checks.h"

namespace fused_lstm {
namespace {

at::Tensor in_cell_type(const at::Tensor& c_0, const at::Tensor& input) {
  if (!c_0.defined()) return {};
  const at::ScalarType dtype = cell_type(c_0, input);
  return (c_0.scalar_type() == dtype ? c_0 : c_0.to(dtype)).contiguous();
}

// The sizes of a call, and the first row of each step if it is packed; the weights are only
// counted, unless they say what absent states do not.
Sequence sequence_of(const LayerArguments& a) {
  Sequence sequence = {};
  Sizes& s = sequence.sizes;
  read_steps(a.input, a.options, sequence);
  const bool has_h_0 = a.h_0.defined(), has_c_0 = a.c_0.defined();
  TORCH_CHECK((!has_h_0 || a.h_0.dim() == 3) && (!has_c_0 || a.c_0.dim() == 3),
              "h_0 and c_0 must be [directions, B, P] and [directions, B, H], got shapes ",
              a.h_0.sizes(), " and ", a.c_0.sizes());
  s.directions = has_h_0 ? a.h_0.size(0) : has_c_0 ? a.c_0.size(0) : directions_of(a.weights);
  TORCH_CHECK(s.directions == 1 || s.directions == 2, has_h_0 ? "h_0" : "c_0", " has ",
              s.directions, " directions, must have 1 or 2");
  const size_t each = a.weights.size() / s.directions;
  TORCH_CHECK(a.weights.size() % s.directions == 0 && each >= 2 && each <= 5, "weights has ",
              a.weights.size(), " tensors, must have 2 to 5 for each of ", s.directions,
              " directions");
  read_features(a, each, s);
  return sequence;
}

Sequence check(const LayerArguments& a) {
  Sequence sequence = sequence_of(a);
  const Sizes& s = sequence.sizes;
  check_states(a, s, s.directions);
  for (int64_t d = 0; d < s.directions; ++d) check_weights(weights_of(a.weights, s, d), s, a.input);
  read_boundaries(a.input, a.options, sequence);
  return sequence;
}

// The dispatcher takes its time to find that there is nothing to do.
at::Tensor in_type(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

// The kernels leave the gradient of the hidden state that entered a direction's first step in
// grad_hidden [count, B, P], and replace h_0 by zero where an episode starts there. Only the
// forward direction can start one at its first step.
void drop_gradient_of_replaced(const Sequence& sequence, const at::Tensor& grad_hidden) {
  if (!sequence.reset || sequence.reset_to_initial) return;
  at::Tensor starts = sequence.reset->select(0, 0);  // [B]
  if (sequence.lengths) starts = starts.logical_and(sequence.lengths->gt(0));
  const at::Tensor forward =
      sequence.sizes.directions == 2 ? grad_hidden.select(0, 0) : grad_hidden;
  forward.masked_fill_(starts.unsqueeze(1), 0);
}

}  // namespace

Weights weights_of(at::TensorList list, const Sizes& sizes, int64_t direction) {
  const size_t each = list.size() / sizes.directions;
  const at::Tensor* first = list.data() + direction * each;
  Weights w = {first[0], first[1], {}, {}, {}};
  if (sizes.biases) {
    w.bias_ih = first[2];
    w.bias_hh = first[3];
  }
  if (sizes.projected) w.hr = first[each - 1];
  return w;
}

void split_biases(Weights& w, at::ScalarType storage) {
  if (!w.bias_ih.defined()) return;
  if (w.bias_ih.scalar_type() == storage && w.bias_hh.scalar_type() == storage) return;
  const at::Tensor sum = w.bias_ih.to(accum_type(storage)).add(w.bias_hh);  // [4H]
  w.bias_ih = sum.to(storage);
  w.bias_hh = sum.sub(w.bias_ih).to(storage);
}

std::vector<Weights> prepared_weights(at::TensorList list, const Sizes& s, at::ScalarType storage) {
  std::vector<Weights> all;
  for (int64_t d = 0; d < s.directions; ++d) {
    Weights w = weights_of(list, s, d);
    split_biases(w, storage);
    for (at::Tensor* tensor : {&w.ih, &w.hh, &w.bias_ih, &w.bias_hh, &w.hr}) {
      if (tensor->defined()) *tensor = tensor->contiguous();
    }
    all.push_back(w);
  }
  return all;
}

std::vector<int64_t> rows_shape(const Sizes& s, int64_t width) {
  if (s.packed) return {s.N, width};
  return {s.T, s.B, width};
}

std::vector<int64_t> rows_shape(int64_t first, const Sizes& s, int64_t width) {
  if (s.packed) return {first, s.N, width};
  return {first, s.T, s.B, width};
}

ForwardTensors forward_tensors(const LayerArguments& arguments, const Sizes& s, int64_t count,
                               bool keep_states, const FinalStates& final_states) {
  const at::TensorOptions options = arguments.input.options();
  ForwardTensors layer;
  layer.input = arguments.input.contiguous();
  if (arguments.h_0.defined()) layer.h_0 = arguments.h_0.contiguous();
  layer.c_0 = in_cell_type(arguments.c_0, arguments.input);
  layer.output = allocate(rows_shape(s, s.directions * s.P), options);
  layer.h_n = final_states.h_n;
  layer.c_n = final_states.c_n;
  if (!layer.h_n.defined()) layer.h_n = allocate({count, s.B, s.P}, options);
  if (!layer.c_n.defined()) {
    layer.c_n =
        allocate({count, s.B, s.H}, options.dtype(cell_type(arguments.c_0, arguments.input)));
  }
  if (keep_states) {
    const at::ScalarType accum = accum_type(arguments.input.scalar_type());
    layer.gates = allocate_pooled(rows_shape(count, s, 4 * s.H), options);
    layer.cells = allocate_pooled(rows_shape(count, s, s.H), options.dtype(accum));
  }
  return layer;
}

std::pair<at::Tensor, at::Tensor> kept_states(const ForwardTensors& layer,
                                              const at::Tensor& input) {
  if (layer.gates.defined()) return {layer.cells, layer.gates};
  const at::TensorOptions options = input.options();
  return {allocate({0}, options.dtype(accum_type(input.scalar_type()))), allocate({0}, options)};
}

LayerResult layer_forward(const Device& device, const LayerArguments& arguments, bool keep_states,
                          const FinalStates& final_states) {
  const Sequence sequence = check(arguments);
  const Sizes& s = sequence.sizes;
  ForwardTensors layer = forward_tensors(arguments, s, s.directions, keep_states, final_states);
  layer.weights = prepared_weights(arguments.weights, s, arguments.input.scalar_type());
  layer.fragments = arguments.fragments;
  if (s.N > 0) device.forward(sequence, layer);
  const auto [cells, gates] = kept_states(layer, arguments.input);
  return {layer.output, layer.h_n, layer.c_n, cells, gates};
}

bool recomputes(const LayerStates& states) { return !states.cells || !states.gates; }

BackwardTensors saved_tensors(const Device& device, const Sequence& sequence,
                              const LayerArguments& arguments, const LayerStates& states,
                              int64_t count, bool weights_needed) {
  const Sizes& s = sequence.sizes;
  const at::ScalarType storage = arguments.input.scalar_type();
  const at::TensorOptions options = arguments.input.options();
  const bool recompute = recomputes(states);
  BackwardTensors layer;
  if (recompute || weights_needed) layer.input = arguments.input.contiguous();
  if (arguments.h_0.defined()) layer.h_0 = arguments.h_0.contiguous();
  layer.c_0 = in_cell_type(arguments.c_0, arguments.input);
  if (s.T > 1) {
    TORCH_CHECK(states.output, "output is missing, must be given for more than one step");
    layer.output = states.output->contiguous();
  }
  if ((recompute || weights_needed) && device.reads_h_prev(sequence, storage)) {
    layer.h_prev = allocate_pooled({count, s.N, s.P}, options.dtype(device.operand_type(storage)));
  }
  layer.cells = recompute ? allocate_pooled({count, s.N, s.H}, options.dtype(accum_type(storage)))
                          : states.cells->contiguous();
  layer.gates =
      recompute ? allocate_pooled({count, s.N, 4 * s.H}, options) : states.gates->contiguous();
  return layer;
}

void add_gradients(const Device& device, const Sequence& sequence, const LayerGradients& gradients,
                   const LayerArguments& arguments, int64_t count, BackwardTensors& layer) {
  const Sizes& s = sequence.sizes;
  const at::ScalarType storage = arguments.input.scalar_type();
  const at::ScalarType accum = accum_type(storage);
  const at::TensorOptions options = arguments.input.options();
  const at::TensorOptions operands = options.dtype(device.operand_type(storage));
  const auto given = [](const std::optional<at::Tensor>& gradient, at::ScalarType dtype) {
    return gradient ? in_type(*gradient, dtype).contiguous() : at::Tensor();
  };
  // The gradient of a running state, [count, B, features].
  const auto carried = [&](const std::optional<at::Tensor>& gradient, const at::Tensor& initial,
                           int64_t features) {
    if (gradient) return gradient->to(options.dtype(accum), false, /*copy=*/true).contiguous();
    if (!initial.defined() && !device.reads_state_gradients()) return at::Tensor();
    return allocate_zeros({count, s.B, features}, options.dtype(accum));
  };
  layer.grad_output = given(gradients.output, storage);
  layer.grad_cells = given(gradients.cells, accum);
  layer.grad_gates = given(gradients.gates, storage);
  layer.grad_hidden = carried(gradients.h_n, layer.h_0, s.P);
  layer.grad_cell = carried(gradients.c_n, layer.c_0, s.H);
  if (sequence.reset && sequence.reset_to_initial) {
    if (layer.h_0.defined()) layer.grad_h_0 = at::zeros_like(layer.grad_hidden);
    if (layer.c_0.defined()) layer.grad_c_0 = at::zeros_like(layer.grad_cell);
  }
  layer.grad_preactivations = allocate_pooled({count, s.N, 4 * s.H}, operands);
  if (s.projected) {
    layer.grad_projection = allocate_pooled({count, s.N, s.P}, operands);
    layer.unprojected = allocate_pooled({count, s.N, s.H}, operands);
  }
}

at::Tensor gradient_of_input(const Device& device, const Sequence& sequence,
                             const BackwardTensors& layer, const at::Tensor& input, bool needed) {
  if (!needed) return allocate({0}, input.options());
  const at::Tensor grad = in_type(device.input_gradient(sequence, layer), input.scalar_type());
  return grad.dim() == input.dim() ? grad : grad.view(input.sizes());
}

std::pair<at::Tensor, at::Tensor> gradients_of_states(const Sequence& sequence,
                                                      const LayerArguments& arguments,
                                                      BackwardTensors& layer) {
  if (layer.h_0.defined()) drop_gradient_of_replaced(sequence, layer.grad_hidden);
  if (layer.grad_h_0.defined()) layer.grad_hidden.add_(layer.grad_h_0);
  if (layer.grad_c_0.defined()) layer.grad_cell.add_(layer.grad_c_0);
  const auto gradient = [&](const at::Tensor& running, const at::Tensor& initial) {
    return initial.defined() ? in_type(running, initial.scalar_type())
                             : allocate({0}, arguments.input.options());
  };
  return {gradient(layer.grad_hidden, arguments.h_0), gradient(layer.grad_cell, arguments.c_0)};
}

void add_weight_gradients(const Device& device, const Sequence& sequence,
                          const BackwardTensors& layer, at::TensorList list, at::ScalarType storage,
                          std::vector<at::Tensor>& gradients) {
  const Sizes& s = sequence.sizes;
  const std::vector<Weights> found = device.weight_gradients(sequence, layer);
  for (int64_t d = 0; d < s.directions; ++d) {
    const Weights& gradient = found[d];
    gradients.push_back(in_type(gradient.ih, storage));
    gradients.push_back(in_type(gradient.hh, storage));
    if (s.biases) {
      const Weights original = weights_of(list, s, d);
      gradients.push_back(in_type(gradient.bias_ih, original.bias_ih.scalar_type()));
      gradients.push_back(in_type(gradient.bias_hh, original.bias_hh.scalar_type()));
    }
    if (s.projected) gradients.push_back(in_type(gradient.hr, storage));
  }
}

InputGradients layer_backward(const Device& device, const LayerGradients& gradients,
                              const LayerArguments& arguments, const LayerStates& states,
                              bool input_needed, bool weights_needed) {
  const Sequence sequence = check(arguments);
  const Sizes& s = sequence.sizes;
  const at::ScalarType storage = arguments.input.scalar_type();
  BackwardTensors layer =
      saved_tensors(device, sequence, arguments, states, s.directions, weights_needed);
  layer.weights = prepared_weights(arguments.weights, s, storage);
  if (recomputes(states) && s.N > 0) device.recompute(sequence, layer);
  add_gradients(device, sequence, gradients, arguments, s.directions, layer);
  if (s.N > 0) device.backward(sequence, layer);

  const auto [grad_h_0, grad_c_0] = gradients_of_states(sequence, arguments, layer);
  const at::Tensor grad_input =
      gradient_of_input(device, sequence, layer, arguments.input, input_needed);
  std::vector<at::Tensor> grad_weights;
  if (weights_needed) {
    add_weight_gradients(device, sequence, layer, arguments.weights, storage, grad_weights);
  }
  return {grad_input, grad_h_0, grad_c_0, grad_weights};
}

}  // namespace fused_lstm
