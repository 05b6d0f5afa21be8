// The gates of a layer a second time, for a backward that did not keep them.
#pragma once

#include "layer.h"

namespace fused_lstm {

// gates [directions, T, B, 4H] or [directions, N, 4H] as layer_forward returned them, from its
// arguments and its output: each direction's as one product over all steps. Rows past the end of a
// sequence are undefined.
at::Tensor rebuild_gates(const LayerArguments& arguments, const at::Tensor& output);

}  // namespace fused_lstm
