// The layer below the dispatcher: what one call computes on one device, and what a stack's call has
// in common with it.
#pragma once

#include <utility>

#include "device/device.h"
#include "operators/arguments.h"

namespace fused_lstm {

// One direction's weights in the list of LayerArguments.
Weights weights_of(at::TensorList list, const Sizes& sizes, int64_t direction);
// Biases wider than `storage` become two of that dtype: their sum rounded, and the rounding error.
void split_biases(Weights& weights, at::ScalarType storage);

// Where a call writes h_n [directions, B, P], in the input's dtype, and c_n [directions, B, H], in
// that or that of the sums. Contiguous; undefined: new tensors.
struct FinalStates {
  at::Tensor h_n, c_n;
};

LayerResult layer_forward(const Device& device, const LayerArguments& arguments, bool keep_states,
                          const FinalStates& final_states = {});

InputGradients layer_backward(const Device& device, const LayerGradients& gradients,
                              const LayerArguments& arguments, const LayerStates& states,
                              bool input_needed, bool weights_needed);

// The parts of such a call. `count` is the first dimension of h_0, c_0, gates and so on: the
// directions of a layer, or the layers of a stack.

// Every direction's weights as the kernels read them: contiguous, the biases in the input's dtype.
std::vector<Weights> prepared_weights(at::TensorList list, const Sizes& sizes,
                                      at::ScalarType storage);
// [T, B, width], or [N, width] if packed.
std::vector<int64_t> rows_shape(const Sizes& sizes, int64_t width);
// The same after a first dimension.
std::vector<int64_t> rows_shape(int64_t first, const Sizes& sizes, int64_t width);

// All tensors of a forward pass but the weights.
ForwardTensors forward_tensors(const LayerArguments& arguments, const Sizes& sizes, int64_t count,
                               bool keep_states, const FinalStates& final_states);
// cells and gates as results, empty where they are not kept.
std::pair<at::Tensor, at::Tensor> kept_states(const ForwardTensors& layer, const at::Tensor& input);

bool recomputes(const LayerStates& states);
// What a backward pass reads of the forward pass, but for the weights: memory where it recomputes.
BackwardTensors saved_tensors(const Device& device, const Sequence& sequence,
                              const LayerArguments& arguments, const LayerStates& states,
                              int64_t count, bool weights_needed);
// The gradients that it starts from, and memory for those that it computes.
void add_gradients(const Device& device, const Sequence& sequence, const LayerGradients& gradients,
                   const LayerArguments& arguments, int64_t count, BackwardTensors& layer);

// After it, the gradients of a call's arguments in their dtypes, as InputGradients has them.
at::Tensor gradient_of_input(const Device& device, const Sequence& sequence,
                             const BackwardTensors& layer, const at::Tensor& input, bool needed);
std::pair<at::Tensor, at::Tensor> gradients_of_states(const Sequence& sequence,
                                                      const LayerArguments& arguments,
                                                      BackwardTensors& layer);
// Of each direction, added to `gradients` in the order of `list`.
void add_weight_gradients(const Device& device, const Sequence& sequence,
                          const BackwardTensors& layer, at::TensorList list, at::ScalarType storage,
                          std::vector<at::Tensor>& gradients);

}  // namespace fused_lstm
