// A stack of layers, one after the other.
#include "device/device.h"

namespace fused_lstm {

Sequence sequence_of_layer(const Sequence& first, size_t k) {
  Sequence sequence = first;
  if (k > 0) sequence.sizes.D = first.sizes.H;
  return sequence;
}

void Device::forward_stack(const Sequence& sequence,
                           const std::vector<ForwardTensors>& layers) const {
  for (size_t k = 0; k < layers.size(); ++k) forward(sequence_of_layer(sequence, k), layers[k]);
}

void Device::backward_stack(const Sequence& sequence, std::vector<BackwardTensors>& layers) const {
  for (size_t k = layers.size(); k-- > 0;) {
    const Sequence its = sequence_of_layer(sequence, k);
    backward(its, layers[k]);
    if (k == 0) break;
    const at::ScalarType storage = layers[k].gates.scalar_type();
    layers[k - 1].grad_output = input_gradient(its, layers[k]).to(storage);
  }
}

}  // namespace fused_lstm
