// Frozen layers as tensors: packing, unpacking, and the operator that runs a stack of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "frozen/packed_layer.h"
#include "operators/arguments.h"

namespace fused_lstm {

// The packed bytes of a layer, uint8. For each of its directions `weights` has weight_ih [4H, D],
// weight_hh [4H, P], then bias_ih and bias_hh [4H] if it has biases, then weight_hr [P, H] if it
// has a projection, contiguous and on the CPU. Matrices are float32, which is rounded to `format`,
// or of the format; for int8 elements `scales` has the scale [rows] of each matrix, in the same
// order, else nothing. Biases and scales are float32.
at::Tensor frozen_pack(const std::vector<at::Tensor>& weights,
                       const std::vector<at::Tensor>& scales, const std::string& format,
                       int64_t directions);

// The weights and the scales as frozen_pack takes them, matrices of the format, to the bit.
std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> frozen_unpack(const at::Tensor& packed);

// The shape of a layer by the first two weights of a list like frozen_pack's.
frozen::Shape frozen_shape(at::TensorList weights, int64_t directions);
// An input or a state.
void check_frozen_dtype(const char* name, const at::Tensor& tensor);

// A layer that this processor can run, and its packed bytes.
struct FrozenLayer {
  at::Tensor packed;
  frozen::Layer layer;
};

// The layers of packed bytes. Those for another processor's kernels are packed again.
std::vector<FrozenLayer> frozen_layers(at::TensorList packed);

// output [.., directions * P]; h_n [L * directions, B, P]; c_n [L * directions, B, H]
using FrozenResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
// The operator's kernel for packed bytes: see its schema.
FrozenResult frozen_forward(const at::Tensor& input, const OptionalTensor& h_0,
                            const OptionalTensor& c_0, at::TensorList packed, int64_t hidden_size,
                            int64_t proj_size, bool bidirectional, const LayerOptions& options);
using FrozenSignature = FrozenResult(const at::Tensor&, const OptionalTensor&,
                                     const OptionalTensor&, at::TensorList, int64_t, int64_t, bool,
                                     const OptionalTensor&, const OptionalTensor&,
                                     const OptionalTensor&, bool);

}  // namespace fused_lstm
