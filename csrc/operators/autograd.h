// What the autograd nodes of a layer, a cell and a stack have in common.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <functional>

#include "operators/operators.h"

namespace fused_lstm {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What the backward pass of a layer or a stack reads. A cell's tensors have the cell's shapes.
struct SavedLayer {
  at::Tensor input, h_0, c_0;
  variable_list weights;
  LayerOptions options;
  LayerStates states;

  void pack(AutogradContext* ctx) const;
  static SavedLayer unpack(AutogradContext* ctx);
  // Of a node whose forward takes the input, the states and the weights first.
  bool weights_needed(AutogradContext* ctx) const;
};

at::Tensor or_empty(const at::Tensor& tensor, const at::Tensor& input, at::ScalarType dtype);

bool differentiates(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                    at::TensorList weights);

// The results of layer_backward and stack_backward cannot be differentiated. Where they have to be
// (create_graph), or where many output gradients come at once (is_grads_batched), the reference is
// differentiated instead.
bool needs_reference(const variable_list& gradients);
// The gradients of reference(inputs), differentiable if GradMode is enabled.
variable_list reference_gradients(
    const variable_list& inputs, const variable_list& gradients,
    const std::function<variable_list(const variable_list&)>& reference);

// The backward pass reads the output of every step but a direction's last. The output of a single
// step is not saved, so that the caller may change it in place.
bool reads_output(const at::Tensor& input, const OptionalTensor& batch_sizes);

}  // namespace fused_lstm
