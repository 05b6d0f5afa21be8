// What one call of a stack computes, the same for every device. A kind of tensor is one for all
// layers, [layers, ...], so that a device may fill it at once; each layer has a slice.
#include "operators/layer_stack.h"

#include "device/pool.h"
#include "operators/checks.h"
#include "operators/layer.h"

namespace fused_lstm {
namespace {

// Of the first layer; the weights are only counted, unless they say what absent states do not.
Sequence sequence_of(const StackArguments& arguments) {
  const LayerArguments& a = arguments.all;
  Sequence sequence = {};
  Sizes& s = sequence.sizes;
  read_steps(a.input, a.options, sequence);
  TORCH_CHECK((!a.h_0.defined() || a.h_0.dim() == 3) && (!a.c_0.defined() || a.c_0.dim() == 3),
              "h_0 and c_0 must be [layers, B, H], got shapes ", a.h_0.sizes(), " and ",
              a.c_0.sizes());
  TORCH_CHECK(arguments.layers > 0, "num_layers is ", arguments.layers, ", must be at least 1");
  s.directions = 1;
  const size_t count = a.weights.size(), each = count / arguments.layers;
  TORCH_CHECK(count % arguments.layers == 0 && (each == 2 || each == 4), "weights has ", count,
              " tensors, must have 2 or 4 for each of ", arguments.layers, " layers");
  read_features(a, each, s);
  return sequence;
}

Sequence check(const StackArguments& arguments) {
  const LayerArguments& a = arguments.all;
  Sequence sequence = sequence_of(arguments);
  check_states(a, sequence.sizes, arguments.layers);
  for (int64_t k = 0; k < arguments.layers; ++k) {
    const Sizes s = sequence_of_layer(sequence, k).sizes;
    check_weights(weights_of(arguments.weights_of(k), s, 0), s, a.input, k);
  }
  read_boundaries(a.input, a.options, sequence);
  return sequence;
}

// Layer k's slice of a tensor of all layers.
at::Tensor slice(const at::Tensor& all, int64_t k) {
  return all.defined() ? all.narrow(0, k, 1) : all;
}

}  // namespace

StackResult stack_forward(const Device& device, const StackArguments& arguments, bool keep_states) {
  const Sequence sequence = check(arguments);
  const Sizes& s = sequence.sizes;
  const at::Tensor& input = arguments.all.input;
  const int64_t last = arguments.layers - 1;
  const ForwardTensors all =
      forward_tensors(arguments.all, s, arguments.layers, keep_states, /*final_states=*/{});
  const at::Tensor lower_outputs = allocate_pooled(rows_shape(last, s, s.H), input.options());

  std::vector<ForwardTensors> layers;
  for (int64_t k = 0; k <= last; ++k) {
    ForwardTensors layer;
    layer.weights = prepared_weights(arguments.weights_of(k), s, input.scalar_type());
    layer.input = k == 0 ? all.input : layers.back().output;
    layer.h_0 = slice(all.h_0, k);
    layer.c_0 = slice(all.c_0, k);
    layer.output = k == last ? all.output : lower_outputs.select(0, k);
    layer.h_n = slice(all.h_n, k);
    layer.c_n = slice(all.c_n, k);
    layer.gates = slice(all.gates, k);
    layer.cells = slice(all.cells, k);
    layers.push_back(layer);
  }
  if (s.N > 0) device.forward_stack(sequence, layers);
  const auto [cells, gates] = kept_states(all, input);
  return {all.output, all.h_n, all.c_n, lower_outputs, cells, gates};
}

InputGradients stack_backward(const Device& device, const LayerGradients& gradients,
                              const StackArguments& arguments, const LayerStates& states,
                              bool input_needed, bool weights_needed) {
  const Sequence sequence = check(arguments);
  const Sizes& s = sequence.sizes;
  const at::Tensor& input = arguments.all.input;
  const int64_t count = arguments.layers, last = count - 1;
  BackwardTensors all =
      saved_tensors(device, sequence, arguments.all, states, count, weights_needed);
  at::Tensor lower_outputs;
  if (last > 0) {
    TORCH_CHECK(states.lower_outputs,
                "lower_outputs is missing, must be given for more than one layer");
    lower_outputs = states.lower_outputs->contiguous();
  }

  std::vector<BackwardTensors> layers(count);
  for (int64_t k = 0; k <= last; ++k) {
    BackwardTensors& layer = layers[k];
    layer.weights = prepared_weights(arguments.weights_of(k), s, input.scalar_type());
    layer.input = k == 0 ? all.input : lower_outputs.select(0, k - 1);
    layer.h_0 = slice(all.h_0, k);
    layer.c_0 = slice(all.c_0, k);
    if (s.T > 1) layer.output = k == last ? all.output : lower_outputs.select(0, k);
    layer.h_prev = slice(all.h_prev, k);
    layer.cells = slice(all.cells, k);
    layer.gates = slice(all.gates, k);
    if (recomputes(states) && s.N > 0) device.recompute(sequence_of_layer(sequence, k), layer);
  }
  add_gradients(device, sequence, gradients, arguments.all, count, all);
  for (int64_t k = 0; k <= last; ++k) {
    BackwardTensors& layer = layers[k];
    layer.grad_hidden = slice(all.grad_hidden, k);
    layer.grad_cell = slice(all.grad_cell, k);
    layer.grad_h_0 = slice(all.grad_h_0, k);
    layer.grad_c_0 = slice(all.grad_c_0, k);
    layer.grad_preactivations = slice(all.grad_preactivations, k);
  }
  layers[last].grad_output = all.grad_output;
  if (s.N > 0) device.backward_stack(sequence, layers);

  const auto [grad_h_0, grad_c_0] = gradients_of_states(sequence, arguments.all, all);
  const at::Tensor grad_input = gradient_of_input(device, sequence, layers[0], input, input_needed);
  std::vector<at::Tensor> grad_weights;
  for (int64_t k = 0; weights_needed && k <= last; ++k) {
    add_weight_gradients(device, sequence_of_layer(sequence, k), layers[k], arguments.weights_of(k),
                         input.scalar_type(), grad_weights);
  }
  return {grad_input, grad_h_0, grad_c_0, grad_weights};
}

}  // namespace fused_lstm
