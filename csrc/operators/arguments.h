// The arguments and results of the operators layer and stack in groups, for every file that hands
// them on.
//
// T steps, B sequences, D input features, H hidden units, P features of the hidden state
// (proj_size, or H), N = T * B rows or those of a packed batch. [.., X] is [T, B, X], or [N, X]
// when packed.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace fused_lstm {

using OptionalTensor = std::optional<at::Tensor>;

struct LayerOptions {
  OptionalTensor batch_sizes;     // [T] int64 on the CPU, as in a PackedSequence
  OptionalTensor lengths;         // [B] int64: outputs past the end are zero
  OptionalTensor reset;           // [T, B] bool: a new episode starts at this step
  bool reset_to_initial = false;  // it starts from h_0 and c_0, not from zero
};

struct LayerArguments {
  const at::Tensor& input;  // [.., D]
  const at::Tensor& h_0;    // [directions, B, P], or undefined: zero
  // [directions, B, H] in the input's dtype, a narrower one, or that of the sums; in the last case
  // c_n has it too. Undefined: zero, in the input's dtype
  const at::Tensor& c_0;
  // For each direction weight_ih [4H, D], weight_hh [4H, P], then bias_ih and bias_hh [4H] if the
  // layer has biases (the sums' dtype is allowed), then weight_hr [P, H] if it has a projection.
  // Rows in the order i f g o.
  at::TensorList weights;
  LayerOptions options;
  at::TensorList fragments = {};  // of a frozen layer, as its device made them
};

// Several layers of one direction without projections, each the input of the next.
struct StackArguments {
  // input as a layer's; h_0 and c_0 are [layers, B, H], the weights those of each layer in turn.
  LayerArguments all;
  int64_t layers;

  at::TensorList weights_of(int64_t k) const {
    const size_t each = all.weights.size() / layers;
    return all.weights.slice(k * each, each);
  }
};

// Of a layer whose states are absent. Only four weights can be those of either.
inline int64_t directions_of(at::TensorList weights) {
  return weights.size() > 5 || (weights.size() == 4 && weights[2].dim() == 2) ? 2 : 1;
}

// output [.., directions * P]; h_n [directions, B, P]; c_n [directions, B, H]; cells
// [directions, .., H] in float32 or wider; gates [directions, .., 4H], activated. Without
// keep_states the last two are empty.
using LayerResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// output [.., H] of the last layer; h_n and c_n [layers, B, H]; lower_outputs [layers - 1, .., H],
// of the others; cells [layers, .., H] and gates [layers, .., 4H] as of a LayerResult.
using StackResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The gradients of a LayerResult, of any strides; of a StackResult the first three.
struct LayerGradients {
  OptionalTensor output, h_n, c_n, cells, gates;
};

// What the forward pass leaves for the backward pass.
struct LayerStates {
  OptionalTensor output;         // not read, and may be absent, where T == 1
  OptionalTensor cells, gates;   // absent: they are recomputed
  OptionalTensor lower_outputs;  // of a stack
};

// The gradients of input, h_0, c_0 and of each weight. Those of the input and of the weights are
// empty unless they are needed, those of absent states always.
using InputGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>;

}  // namespace fused_lstm
