// A stack of layers below the dispatcher: what one call computes on one device.
#pragma once

#include "device/device.h"
#include "operators/arguments.h"

namespace fused_lstm {

StackResult stack_forward(const Device& device, const StackArguments& arguments, bool keep_states);

// The gradients of h_0, c_0 and the weights are of all layers, as the arguments are.
InputGradients stack_backward(const Device& device, const LayerGradients& gradients,
                              const StackArguments& arguments, const LayerStates& states,
                              bool input_needed, bool weights_needed);

}  // namespace fused_lstm
