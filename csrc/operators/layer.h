// The layer operator's own functions, below the dispatcher: what one call computes on one device.
#pragma once

#include <tuple>

#include "operators/device.h"

namespace fused_lstm {

// Arguments that forward and backward share. T steps, B sequences, D input features, H hidden
// units, P features of the hidden state (proj_size, or H), N = T * B rows.
struct LayerArguments {
  const at::Tensor& input;  // [T, B, D], or [N, D] with batch_sizes
  const at::Tensor& h_0;    // [directions, B, P]
  // [directions, B, H], of the input's dtype, a narrower one, or that of the sums; in the last
  // case c_n is of it too
  const at::Tensor& c_0;
  // For each direction weight_ih [4H, D], weight_hh [4H, P], then bias_ih and bias_hh [4H] if the
  // layer has biases, then weight_hr [P, H] if it has a projection. Rows in the order i f g o. The
  // biases may be of the sums' dtype.
  at::TensorList weights;
  const std::optional<at::Tensor>& batch_sizes;  // [T] int64 on the CPU, as in a PackedSequence
  const std::optional<at::Tensor>& lengths;      // [B] int64: outputs past the end are zero
  const std::optional<at::Tensor>& reset;        // [T, B] bool: a new episode starts here
  bool reset_to_initial;                         // from hidden and cell, rather than from zero
};

// output [T, B, directions * P] or [N, directions * P], h_n [directions, B, P],
// c_n [directions, B, H], cells [directions, T, B, H] or [directions, N, H] in float32 or
// wider, gates [directions, ..., 4H] activated. The last two are empty unless keep_states.
using LayerResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
LayerResult layer_forward(const LayerArguments& arguments, bool keep_states);

// Gradients of the results, each of them of any strides, or absent.
struct LayerGradients {
  const std::optional<at::Tensor>& output;
  const std::optional<at::Tensor>& h_n;
  const std::optional<at::Tensor>& c_n;
  const std::optional<at::Tensor>& cells;
  const std::optional<at::Tensor>& gates;
};

// Gradients of input, hidden, cell and the weights. Those of input and of the weights are empty
// unless they are needed. Without cells and gates both are computed a second time. output: only
// where T > 1.
using LayerInputGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>;
LayerInputGradients layer_backward(const LayerGradients& gradients, const LayerArguments& arguments,
                                   const std::optional<at::Tensor>& output,
                                   const std::optional<at::Tensor>& cells,
                                   const std::optional<at::Tensor>& gates, bool input_needed,
                                   bool weights_needed);

}  // namespace fused_lstm
