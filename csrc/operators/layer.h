// The layer below the dispatcher: what one call computes on one device.
#pragma once

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

}  // namespace fused_lstm
