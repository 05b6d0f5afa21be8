// The gates and cell states of a layer a second time, for a backward that did not keep them.
#pragma once

#include "operators/device.h"

namespace fused_lstm {

// Fills layer.gates and layer.cells with what the forward would have kept, from the layer's other
// tensors and its input [N, D] or [T, B, D]: the gates of each direction by one gemm over all
// steps, the cell states by a walk over their elements. Gates past the end of a sequence are
// undefined.
void recompute_states(const Device& device, const Sequence& sequence, const at::Tensor& input,
                      BackwardTensors& layer);

}  // namespace fused_lstm
