// Checks of an operator's arguments; each error names the argument, what it is and what it must be.
#pragma once

#include <ATen/core/Tensor.h>

#include <ostream>

#include "device/device.h"
#include "operators/arguments.h"

namespace fused_lstm {

// An argument's name in errors, with its layer in a stack of several but for the first.
struct ArgumentName {
  const char* text;
  int64_t layer;

  ArgumentName(const char* text, int64_t layer = 0) : text(text), layer(layer) {}
};
inline std::ostream& operator<<(std::ostream& stream, const ArgumentName& name) {
  stream << name.text;
  return name.layer == 0 ? stream : stream << " of layer " << name.layer;
}

void check_place(const ArgumentName& name, const at::Tensor& tensor, at::IntArrayRef shape,
                 const at::Tensor& input);
void check_mask(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                at::ScalarType dtype, const at::Tensor& input);

// T, B and N of `input`, [T, B, D] or [N, D] with batch_sizes, and the first row of each step of a
// packed sequence.
void read_steps(const at::Tensor& input, const LayerOptions& options, Sequence& sequence);
// H and P, and what a layer has beside its weight matrices, by `each` tensors of `a.weights` for a
// direction. Those are only counted, unless they say what absent states do not.
void read_features(const LayerArguments& a, size_t each, Sizes& sizes);
// lengths [B] and reset [T, B] of such a call.
void read_boundaries(const at::Tensor& input, const LayerOptions& options, Sequence& sequence);

// h_0 [count, B, P] and c_0 [count, B, H], of `count` directions or layers.
void check_states(const LayerArguments& a, const Sizes& sizes, int64_t count);
// One direction's weights, of layer `layer` of a stack.
void check_weights(const Weights& weights, const Sizes& sizes, const at::Tensor& input,
                   int64_t layer = 0);

// The dtype in which c_0 is read and c_n returned: a c_0 narrower than the input is widened to it.
at::ScalarType cell_type(const at::Tensor& c_0, const at::Tensor& input);

}  // namespace fused_lstm
