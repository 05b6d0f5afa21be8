// The layer below the dispatcher: what one call computes on one device.
#pragma once

#include "device/device.h"
#include "operators/arguments.h"

namespace fused_lstm {

LayerResult layer_forward(const Device& device, const LayerArguments& arguments, bool keep_states);

InputGradients layer_backward(const Device& device, const LayerGradients& gradients,
                              const LayerArguments& arguments, const LayerStates& states,
                              bool input_needed, bool weights_needed);

}  // namespace fused_lstm
