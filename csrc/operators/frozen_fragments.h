// Frozen layers on a GPU: each layer's weights in one dtype, as `layer` takes them, and then the
// same once more, as fragments that kernels load (Device::fragments), of some kinds of calls.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "device/device.h"
#include "operators/arguments.h"
#include "operators/frozen.h"
#include "operators/layer.h"

namespace fused_lstm {

// Whether layers that are frozen on this device keep fragments, rather than panels.
bool frozen_keeps_fragments(at::Device device);

// The tensors of a layer: those of `weights`, as frozen_pack takes them but on any device and with
// all matrices in the dtype that is multiplied, copied, with biases in this dtype; then the
// fragments, uint8, for a call of one step, for longer ones and for those of more sequences. Empty:
// the call has none, or those of a call before.
std::vector<at::Tensor> frozen_pack_fragments(const std::vector<at::Tensor>& weights,
                                              int64_t directions);

// The operator's kernel for the tensors of a stack of such layers. Final states that are given are
// [L * directions, B, ..], in the weights' dtype, c_n in that or in float32.
FrozenResult frozen_forward_fragments(const Device& device, const at::Tensor& input,
                                      const OptionalTensor& h_0, const OptionalTensor& c_0,
                                      at::TensorList packed, int64_t hidden_size, int64_t proj_size,
                                      bool bidirectional, const LayerOptions& options,
                                      const FinalStates& final_states = {});

// A step of a stack without a second direction, in place: input [B, D], states [L, B, ..].
// Returns the output [B, P].
at::Tensor frozen_step(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                       const at::Tensor& h_n, const at::Tensor& c_n,
                       const std::vector<at::Tensor>& packed, int64_t hidden_size,
                       int64_t proj_size);

}  // namespace fused_lstm
