// The operators as the dispatcher calls them. It passes every argument of a schema on its own; the
// functions here are where those of the layer and of a stack are grouped, and where they are spread
// again.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include "operators/arguments.h"

namespace fused_lstm {

// An absent tensor as a schema has it, and as everything below does.
inline const at::Tensor& or_undefined(const OptionalTensor& tensor) {
  static const at::Tensor undefined;
  return tensor ? *tensor : undefined;
}
inline OptionalTensor if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// A kernel of fused_lstm::layer from one that takes its arguments in groups.
template <LayerResult (*kernel)(const LayerArguments&, bool keep_states, bool recompute)>
LayerResult layer_kernel(const at::Tensor& input, const OptionalTensor& h_0,
                         const OptionalTensor& c_0, at::TensorList weights,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& reset, bool reset_to_initial, bool keep_states,
                         bool recompute) {
  return kernel({input,
                 or_undefined(h_0),
                 or_undefined(c_0),
                 weights,
                 {batch_sizes, lengths, reset, reset_to_initial}},
                keep_states, recompute);
}

// The same of fused_lstm::stack.
template <StackResult (*kernel)(const StackArguments&, bool keep_states, bool recompute)>
StackResult stack_kernel(const at::Tensor& input, const OptionalTensor& h_0,
                         const OptionalTensor& c_0, at::TensorList weights, int64_t num_layers,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& reset, bool reset_to_initial, bool keep_states,
                         bool recompute) {
  return kernel({{input,
                  or_undefined(h_0),
                  or_undefined(c_0),
                  weights,
                  {batch_sizes, lengths, reset, reset_to_initial}},
                 num_layers},
                keep_states, recompute);
}

using LayerSignature = LayerResult(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                   at::TensorList, const OptionalTensor&, const OptionalTensor&,
                                   const OptionalTensor&, bool, bool, bool);
using LayerBackwardSignature = InputGradients(
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
    at::TensorList, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, bool, bool, bool);

using StackSignature = StackResult(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                   at::TensorList, int64_t, const OptionalTensor&,
                                   const OptionalTensor&, const OptionalTensor&, bool, bool, bool);
using StackBackwardSignature = InputGradients(
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
    const OptionalTensor&, const OptionalTensor&, at::TensorList, int64_t, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, bool, bool, bool);

// One step of a layer without a projection: (input [B, D], h_0 [B, H], c_0 [B, H], weights,
// keep_states) -> (h_n [B, H], c_n [B, H], cells [B, H], gates [B, 4H]).
using CellResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using CellSignature = CellResult(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                 at::TensorList, bool);

// The operators as autograd records them, on a gradient's account alone: without keep_states cells
// and gates are undefined or empty.
LayerResult recorded_layer(const LayerArguments& arguments, bool keep_states, bool recompute);
StackResult recorded_stack(const StackArguments& arguments, bool keep_states, bool recompute);
CellResult recorded_cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                         at::TensorList weights, bool keep_states);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// op: fused_lstm::layer or fused_lstm::layer_reference.
inline LayerResult call(const c10::TypedOperatorHandle<LayerSignature>& op, const LayerArguments& a,
                        bool keep_states, bool recompute) {
  const LayerOptions& o = a.options;
  return op.call(a.input, if_defined(a.h_0), if_defined(a.c_0), a.weights, o.batch_sizes, o.lengths,
                 o.reset, o.reset_to_initial, keep_states, recompute);
}

inline StackResult call(const c10::TypedOperatorHandle<StackSignature>& op, const StackArguments& a,
                        bool keep_states, bool recompute) {
  const LayerArguments& all = a.all;
  const LayerOptions& o = all.options;
  return op.call(all.input, if_defined(all.h_0), if_defined(all.c_0), all.weights, a.layers,
                 o.batch_sizes, o.lengths, o.reset, o.reset_to_initial, keep_states, recompute);
}

}  // namespace fused_lstm
