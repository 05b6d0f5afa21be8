// Schemas of the operators, and their kernels: the same functions for CPU and CUDA, each registered
// with its Device.
#include "operators/operators.h"

#include <torch/library.h>

#include "device/torch_private.h"
#include "operators/frozen.h"
#include "operators/frozen_fragments.h"
#include "operators/layer.h"
#include "operators/layer_stack.h"

namespace fused_lstm {
namespace {

template <const Device& (*device)()>
LayerResult layer(const LayerArguments& arguments, bool keep_states, bool /*recompute*/) {
  return layer_forward(device(), arguments, keep_states);
}

template <const Device& (*device)()>
InputGradients layer_gradients(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                               const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                               const OptionalTensor& grad_gates, const at::Tensor& input,
                               const OptionalTensor& h_0, const OptionalTensor& c_0,
                               at::TensorList weights, const OptionalTensor& output,
                               const OptionalTensor& cells, const OptionalTensor& gates,
                               const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                               const OptionalTensor& reset, bool reset_to_initial,
                               bool input_needed, bool weights_needed) {
  return layer_backward(device(), {grad_output, grad_h_n, grad_c_n, grad_cells, grad_gates},
                        {input,
                         or_undefined(h_0),
                         or_undefined(c_0),
                         weights,
                         {batch_sizes, lengths, reset, reset_to_initial}},
                        {output, cells, gates}, input_needed, weights_needed);
}

template <const Device& (*device)()>
StackResult stack(const StackArguments& arguments, bool keep_states, bool /*recompute*/) {
  return stack_forward(device(), arguments, keep_states);
}

template <const Device& (*device)()>
InputGradients stack_gradients(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                               const OptionalTensor& grad_c_n, const at::Tensor& input,
                               const OptionalTensor& h_0, const OptionalTensor& c_0,
                               at::TensorList weights, int64_t num_layers,
                               const OptionalTensor& output, const OptionalTensor& lower_outputs,
                               const OptionalTensor& cells, const OptionalTensor& gates,
                               const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                               const OptionalTensor& reset, bool reset_to_initial,
                               bool input_needed, bool weights_needed) {
  return stack_backward(device(), {grad_output, grad_h_n, grad_c_n, {}, {}},
                        {{input,
                          or_undefined(h_0),
                          or_undefined(c_0),
                          weights,
                          {batch_sizes, lengths, reset, reset_to_initial}},
                         num_layers},
                        {output, cells, gates, lower_outputs}, input_needed, weights_needed);
}

template <const Device& (*device)()>
CellResult cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                at::TensorList weights, bool keep_states) {
  TORCH_CHECK(input.dim() == 2 && h_0.dim() == 2 && c_0.dim() == 2,
              "input, h_0 and c_0 must be [B, D], [B, H] and [B, H], got shapes ", input.sizes(),
              ", ", h_0.sizes(), " and ", c_0.sizes());
  const auto one_step = [](const at::Tensor& x) { return torch_private::one_step(x, 0); };
  auto [output, h_n, c_n, cells, gates] = layer_forward(
      device(), {one_step(input), one_step(h_0), one_step(c_0), weights, {}}, keep_states);
  // New tensors, which nothing else holds, so that they need no views to take the cell's shapes.
  const auto take_shape = [B = c_0.size(0)](const at::Tensor& x, int64_t features) {
    x.unsafeGetTensorImpl()->set_sizes_contiguous({B, features});
  };
  const int64_t H = c_0.size(1);
  take_shape(h_n, h_0.size(1));
  take_shape(c_n, H);
  if (keep_states) {
    take_shape(cells, H);
    take_shape(gates, 4 * H);
  }
  return {h_n, c_n, cells, gates};
}

template <const Device& (*device)()>
FrozenResult frozen_lstm(const at::Tensor& input, const OptionalTensor& h_0,
                         const OptionalTensor& c_0, at::TensorList packed, int64_t hidden_size,
                         int64_t proj_size, bool bidirectional, const OptionalTensor& batch_sizes,
                         const OptionalTensor& lengths, const OptionalTensor& reset,
                         bool reset_to_initial) {
  TORCH_CHECK(!packed.empty(), "packed is empty, must have a tensor for each layer");
  const LayerOptions options = {batch_sizes, lengths, reset, reset_to_initial};
  if (at::isFloatingType(packed[0].scalar_type())) {
    return frozen_forward_fragments(device(), input, h_0, c_0, packed, hidden_size, proj_size,
                                    bidirectional, options);
  }
  TORCH_CHECK(input.device().is_cpu(), "input is on ", input.device(),
              ", but the layer was frozen on the CPU; move the input there, or freeze the layer on "
              "the input's device");
  return frozen_forward(input, h_0, c_0, packed, hidden_size, proj_size, bidirectional, options);
}

template <const Device& (*device)()>
void register_operators(torch::Library& m) {
  m.impl("layer", layer_kernel<layer<device>>);
  m.impl("layer_backward", layer_gradients<device>);
  m.impl("stack", stack_kernel<stack<device>>);
  m.impl("stack_backward", stack_gradients<device>);
  m.impl("cell", cell<device>);
  m.impl("frozen_lstm", frozen_lstm<device>);
}

#ifndef FUSED_LSTM_WITH_CUDA
void built_without_cuda(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, op.schema().name(),
              ": a tensor is on a CUDA device, but this fused_lstm was built without CUDA; rebuild "
              "it where torch has CUDA and CUDA_HOME names a toolkit (FUSED_LSTM_CUDA=1 pip "
              "install .), or move the tensors to the CPU");
}
#endif

}  // namespace

TORCH_LIBRARY(fused_lstm, m) {
  m.def(
      "layer(Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, *, "
      "Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? reset=None, "
      "bool reset_to_initial=False, bool keep_states=False, bool recompute=False) -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)");
  m.def(
      "layer_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, "
      "Tensor? grad_cells, Tensor? grad_gates, Tensor input, Tensor? h_0, Tensor? c_0, "
      "Tensor[] weights, Tensor? output, Tensor? cells, Tensor? gates, *, "
      "Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? reset=None, "
      "bool reset_to_initial=False, bool input_needed=True, bool weights_needed=True) -> "
      "(Tensor grad_input, Tensor grad_hidden, Tensor grad_cell, Tensor[] grad_weights)");
  // The same maths in plain PyTorch, differentiable any number of times: fused_lstm/reference.py.
  m.def(
      "layer_reference(Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, *, "
      "Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? reset=None, "
      "bool reset_to_initial=False, bool keep_states=True, bool recompute=False) -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)");
  // Several layers of one direction without projections, each the input of the next.
  m.def(
      "stack(Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, int num_layers, *, "
      "Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? reset=None, "
      "bool reset_to_initial=False, bool keep_states=False, bool recompute=False) -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor lower_outputs, Tensor cells, Tensor gates)");
  m.def(
      "stack_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, "
      "Tensor? h_0, Tensor? c_0, Tensor[] weights, int num_layers, Tensor? output, "
      "Tensor? lower_outputs, Tensor? cells, Tensor? gates, *, "
      "Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? reset=None, "
      "bool reset_to_initial=False, bool input_needed=True, bool weights_needed=True) -> "
      "(Tensor grad_input, Tensor grad_hidden, Tensor grad_cell, Tensor[] grad_weights)");
  m.def(
      "cell(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, *, "
      "bool keep_states=False) -> (Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)");
  // A stack of frozen layers: `packed` has the bytes of each (operators/frozen.h), or its weights
  // and their fragments (operators/frozen_fragments.h).
  m.def(
      "frozen_lstm(Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] packed, int hidden_size, "
      "int proj_size, bool bidirectional, *, Tensor? batch_sizes=None, Tensor? lengths=None, "
      "Tensor? reset=None, bool reset_to_initial=False) -> "
      "(Tensor output, Tensor h_n, Tensor c_n)");
}

TORCH_LIBRARY_IMPL(fused_lstm, CPU, m) { register_operators<cpu_device>(m); }

TORCH_LIBRARY_IMPL(fused_lstm, CUDA, m) {
#ifdef FUSED_LSTM_WITH_CUDA
  register_operators<cuda_device>(m);
#else
  for (const char* name :
       {"layer", "layer_backward", "stack", "stack_backward", "cell", "frozen_lstm"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&built_without_cuda>());
  }
#endif
}

}  // namespace fused_lstm
