// What one call of the layer computes, the same for every device: checks, allocation, and the order
// of a device's passes.
#include "operators/layer.h"

#include <ATen/ops/zeros_like.h>

#include "device/pool.h"
#include "operators/checks.h"

namespace fused_lstm {
namespace {

// The dtype must be the input's or, with `or_wider`, may be that of the sums.
void check_dtype(const char* name, at::ScalarType dtype, const at::Tensor& input, bool or_wider) {
  const at::ScalarType storage = input.scalar_type(), wider = accum_type(storage);
  if (dtype == storage || (or_wider && dtype == wider)) return;
  TORCH_CHECK(false, name, " has dtype ", dtype, ", must be the input's dtype ", storage,
              or_wider && wider != storage ? std::string(" or ") + c10::toString(wider) : "");
}

void check_matrix(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                  const at::Tensor& input, bool or_wider = false) {
  check_place(name, tensor, shape, input);
  check_dtype(name, tensor.scalar_type(), input, or_wider);
}

// The dtype in which c_0 is read and c_n returned: a c_0 narrower than the input is widened to it.
at::ScalarType cell_type(const at::Tensor& c_0, const at::Tensor& input) {
  const at::ScalarType storage = input.scalar_type();
  return c_0.defined() ? c10::promoteTypes(c_0.scalar_type(), storage) : storage;
}
at::Tensor in_cell_type(const at::Tensor& c_0, const at::Tensor& input) {
  if (!c_0.defined()) return {};
  const at::ScalarType dtype = cell_type(c_0, input);
  return (c_0.scalar_type() == dtype ? c_0 : c_0.to(dtype)).contiguous();
}

// H by the weights of one direction, `each` of them: what two say, so that the checks name the one
// that does not fit.
int64_t hidden_size_of(const at::TensorList& weights, size_t each) {
  const at::Tensor &ih = weights[0], &hh = weights[1], &last = each % 2 ? weights[each - 1] : hh;
  const auto check_dimensions = [](const char* name, const at::Tensor& weight) {
    TORCH_CHECK(weight.dim() == 2, name, " has shape ", weight.sizes(), ", must be a matrix");
  };
  check_dimensions("weight_ih", ih);
  check_dimensions("weight_hh", hh);
  check_dimensions("weight_hr", last);
  const int64_t rows = ih.size(0) / 4;
  return rows == hh.size(0) / 4 || rows == last.size(1) ? rows : last.size(1);
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
  s.biases = each >= 4;
  s.projected = each % 2 == 1;
  s.H = has_c_0 ? a.c_0.size(2) : hidden_size_of(a.weights, each);
  s.P = has_h_0 ? a.h_0.size(2) : s.projected ? a.weights[1].size(1) : s.H;
  TORCH_CHECK(s.projected || s.P == s.H, "h_0 has ", s.P, " features, must have ",
              has_c_0 ? "c_0's " : "the weights' ", s.H);
  return sequence;
}

void check_states_and_weights(const LayerArguments& a, const Sizes& s) {
  if (a.h_0.defined()) check_matrix("h_0", a.h_0, {s.directions, s.B, s.P}, a.input);
  if (a.c_0.defined()) {
    check_place("c_0", a.c_0, {s.directions, s.B, s.H}, a.input);
    check_dtype("c_0", cell_type(a.c_0, a.input), a.input, /*or_wider=*/true);
  }
  for (int64_t d = 0; d < s.directions; ++d) {
    const Weights w = weights_of(a.weights, s, d);
    check_matrix("weight_ih", w.ih, {4 * s.H, s.D}, a.input);
    check_matrix("weight_hh", w.hh, {4 * s.H, s.P}, a.input);
    if (s.biases) {
      check_matrix("bias_ih", w.bias_ih, {4 * s.H}, a.input, /*or_wider=*/true);
      check_matrix("bias_hh", w.bias_hh, {4 * s.H}, a.input, /*or_wider=*/true);
    }
    if (s.projected) check_matrix("weight_hr", w.hr, {s.P, s.H}, a.input);
  }
}

Sequence check(const LayerArguments& a) {
  Sequence sequence = sequence_of(a);
  const Sizes& s = sequence.sizes;
  check_states_and_weights(a, s);
  read_boundaries(a.input, a.options, sequence);
  return sequence;
}

// The dispatcher takes its time to find that there is nothing to do.
at::Tensor in_type(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

// Every direction's weights as the kernels read them: contiguous, the biases in the input's dtype.
std::vector<Weights> prepared_weights(const LayerArguments& a, const Sizes& s) {
  const at::ScalarType storage = a.input.scalar_type();
  std::vector<Weights> all;
  for (int64_t d = 0; d < s.directions; ++d) {
    Weights w = weights_of(a.weights, s, d);
    split_biases(w, storage);
    for (at::Tensor* tensor : {&w.ih, &w.hh, &w.bias_ih, &w.bias_hh, &w.hr}) {
      if (tensor->defined()) *tensor = tensor->contiguous();
    }
    all.push_back(w);
  }
  return all;
}

// [T, B, width], or [N, width] if packed; after [directions], if given.
std::vector<int64_t> rows_shape(const Sizes& s, int64_t width, int64_t directions = 0) {
  std::vector<int64_t> shape;
  if (directions) shape.push_back(directions);
  if (s.packed) {
    shape.push_back(s.N);
  } else {
    shape.insert(shape.end(), {s.T, s.B});
  }
  shape.push_back(width);
  return shape;
}

// The kernels leave the gradient of the hidden state that entered a direction's first step in
// grad_hidden [B, P], and replace h_0 by zero where an episode starts there. Only the forward
// direction can start one at its first step.
void drop_gradient_of_replaced(const Sequence& sequence, const at::Tensor& grad_hidden) {
  if (!sequence.reset || sequence.reset_to_initial) return;
  at::Tensor starts = sequence.reset->select(0, 0);  // [B]
  if (sequence.lengths) starts = starts.logical_and(sequence.lengths->gt(0));
  grad_hidden.select(0, 0).masked_fill_(starts.unsqueeze(1), 0);
}

// Of each direction, in the order and dtypes of arguments.weights.
std::vector<at::Tensor> weight_gradients(const Device& device, const Sequence& sequence,
                                         const BackwardTensors& layer,
                                         const LayerArguments& arguments) {
  const Sizes& s = sequence.sizes;
  const at::ScalarType storage = arguments.input.scalar_type();
  const std::vector<Weights> gradients = device.weight_gradients(sequence, layer);
  std::vector<at::Tensor> all;
  for (int64_t d = 0; d < s.directions; ++d) {
    const Weights& gradient = gradients[d];
    all.push_back(in_type(gradient.ih, storage));
    all.push_back(in_type(gradient.hh, storage));
    if (s.biases) {
      const Weights original = weights_of(arguments.weights, s, d);
      all.push_back(in_type(gradient.bias_ih, original.bias_ih.scalar_type()));
      all.push_back(in_type(gradient.bias_hh, original.bias_hh.scalar_type()));
    }
    if (s.projected) all.push_back(in_type(gradient.hr, storage));
  }
  return all;
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

LayerResult layer_forward(const Device& device, const LayerArguments& arguments, bool keep_states,
                          const FinalStates& final_states) {
  const Sequence sequence = check(arguments);
  const Sizes& s = sequence.sizes;
  const at::TensorOptions options = arguments.input.options();
  const at::TensorOptions accums = options.dtype(accum_type(arguments.input.scalar_type()));

  ForwardTensors layer;
  layer.weights = prepared_weights(arguments, s);
  layer.input = arguments.input.contiguous();
  if (arguments.h_0.defined()) layer.h_0 = arguments.h_0.contiguous();
  layer.c_0 = in_cell_type(arguments.c_0, arguments.input);
  layer.output = allocate(rows_shape(s, s.directions * s.P), options);
  layer.fragments = arguments.fragments;
  layer.h_n = final_states.h_n;
  layer.c_n = final_states.c_n;
  if (!layer.h_n.defined()) layer.h_n = allocate({s.directions, s.B, s.P}, options);
  if (!layer.c_n.defined()) {
    layer.c_n = allocate({s.directions, s.B, s.H},
                         options.dtype(cell_type(arguments.c_0, arguments.input)));
  }
  if (keep_states) {
    layer.gates = allocate_pooled(rows_shape(s, 4 * s.H, s.directions), options);
    layer.cells = allocate_pooled(rows_shape(s, s.H, s.directions), accums);
  }
  if (s.N > 0) device.forward(sequence, layer);

  const auto or_empty = [](const at::Tensor& tensor, const at::TensorOptions& its_options) {
    return tensor.defined() ? tensor : allocate({0}, its_options);
  };
  return {layer.output, layer.h_n, layer.c_n, or_empty(layer.cells, accums),
          or_empty(layer.gates, options)};
}

InputGradients layer_backward(const Device& device, const LayerGradients& gradients,
                              const LayerArguments& arguments, const LayerStates& states,
                              bool input_needed, bool weights_needed) {
  const Sequence sequence = check(arguments);
  const Sizes& s = sequence.sizes;
  const at::ScalarType storage = arguments.input.scalar_type();
  const at::ScalarType accum = accum_type(storage);
  const at::TensorOptions options = arguments.input.options();
  const at::TensorOptions operands = options.dtype(device.operand_type(storage));
  const auto given = [](const std::optional<at::Tensor>& gradient, at::ScalarType dtype) {
    return gradient ? in_type(*gradient, dtype).contiguous() : at::Tensor();
  };
  // The gradient of a running state, [directions, B, features].
  const auto carried = [&](const std::optional<at::Tensor>& gradient, const at::Tensor& initial,
                           int64_t features) {
    if (gradient) return gradient->to(options.dtype(accum), false, /*copy=*/true).contiguous();
    if (!initial.defined() && !device.reads_state_gradients()) return at::Tensor();
    return allocate_zeros({s.directions, s.B, features}, options.dtype(accum));
  };

  BackwardTensors layer;
  layer.weights = prepared_weights(arguments, s);
  const bool recompute = !states.cells || !states.gates;
  if (recompute || weights_needed) layer.input = arguments.input.contiguous();
  if (arguments.h_0.defined()) layer.h_0 = arguments.h_0.contiguous();
  layer.c_0 = in_cell_type(arguments.c_0, arguments.input);
  if (s.T > 1) {
    TORCH_CHECK(states.output, "output is missing, must be given for more than one step");
    layer.output = states.output->contiguous();
  }
  if ((recompute || weights_needed) && device.reads_h_prev(sequence, storage)) {
    layer.h_prev = allocate_pooled({s.directions, s.N, s.P}, operands);
  }
  layer.cells = recompute ? allocate_pooled({s.directions, s.N, s.H}, options.dtype(accum))
                          : states.cells->contiguous();
  layer.gates = recompute ? allocate_pooled({s.directions, s.N, 4 * s.H}, options)
                          : states.gates->contiguous();
  if (recompute && s.N > 0) device.recompute(sequence, layer);
  layer.grad_output = given(gradients.output, storage);
  layer.grad_cells = given(gradients.cells, accum);
  layer.grad_gates = given(gradients.gates, storage);
  layer.grad_hidden = carried(gradients.h_n, layer.h_0, s.P);
  layer.grad_cell = carried(gradients.c_n, layer.c_0, s.H);
  if (sequence.reset && sequence.reset_to_initial) {
    if (layer.h_0.defined()) layer.grad_h_0 = at::zeros_like(layer.grad_hidden);
    if (layer.c_0.defined()) layer.grad_c_0 = at::zeros_like(layer.grad_cell);
  }
  layer.grad_preactivations = allocate_pooled({s.directions, s.N, 4 * s.H}, operands);
  if (s.projected) {
    layer.grad_projection = allocate_pooled({s.directions, s.N, s.P}, operands);
    layer.unprojected = allocate_pooled({s.directions, s.N, s.H}, operands);
  }
  if (s.N > 0) device.backward(sequence, layer);

  if (layer.h_0.defined()) drop_gradient_of_replaced(sequence, layer.grad_hidden);
  if (layer.grad_h_0.defined()) layer.grad_hidden.add_(layer.grad_h_0);
  if (layer.grad_c_0.defined()) layer.grad_cell.add_(layer.grad_c_0);
  const auto initial_gradient = [&](const at::Tensor& running, const at::Tensor& initial) {
    return initial.defined() ? in_type(running, initial.scalar_type()) : allocate({0}, options);
  };

  at::Tensor grad_input;
  if (!input_needed) {
    grad_input = allocate({0}, options);
  } else {
    grad_input = in_type(device.input_gradient(sequence, layer), storage);
    if (grad_input.dim() != arguments.input.dim()) {
      grad_input = grad_input.view(arguments.input.sizes());
    }
  }

  std::vector<at::Tensor> grad_weights;
  if (weights_needed) grad_weights = weight_gradients(device, sequence, layer, arguments);
  return {grad_input, initial_gradient(layer.grad_hidden, arguments.h_0),
          initial_gradient(layer.grad_cell, arguments.c_0), grad_weights};
}

}  // namespace fused_lstm
