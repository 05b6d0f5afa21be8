// The operators as the dispatcher knows them, for the wrappers that call them from C++.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <tuple>
#include <vector>

namespace fused_lstm {

using OptionalTensor = std::optional<at::Tensor>;
using FiveTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using InputGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>;

// layer: (input, hidden, cell, weights, batch_sizes, lengths, reset, reset_to_initial,
// keep_states, recompute) -> (output, h_n, c_n, cells, gates); shapes in layer.h. With
// recompute, its backward gets neither cells nor gates and rebuilds them. It reads the output of
// every step but a direction's last: of a single step it gets none.
using LayerSignature = FiveTensors(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                   at::TensorList, const OptionalTensor&, const OptionalTensor&,
                                   const OptionalTensor&, bool, bool, bool);
using LayerBackwardSignature = InputGradients(
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList,
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, bool, bool, bool);

// cell: (input [B, D], hidden [B, H], cell [B, H], weights, keep_states) ->
// (h_n [B, H], c_n [B, H], cells [B, H], gates [B, 4H]): one step of a layer.
using CellSignature = FourTensors(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  at::TensorList, bool);
using CellBackwardSignature = InputGradients(const OptionalTensor&, const OptionalTensor&,
                                             const OptionalTensor&, const OptionalTensor&,
                                             const at::Tensor&, const at::Tensor&,
                                             const at::Tensor&, at::TensorList, const at::Tensor&,
                                             const at::Tensor&, bool, bool);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace fused_lstm
