// Under autocast the operators run in its lower precision where nn.LSTM's results have it; the cell
// state stays in float32 inside.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "operators/operators.h"
#include "operators/torch_private.h"

namespace fused_lstm {
namespace {

// The type that a call runs in. On a CPU nn.LSTM with a packed sequence or a projection, and
// nn.LSTMCell, add products in autocast's type to a cell state in that of the caller.
at::ScalarType type_of(c10::DeviceType device, bool adds_to_state, const at::Tensor& c_0) {
  const at::ScalarType lower = at::autocast::get_autocast_dtype(device);
  return device == c10::DeviceType::CPU && adds_to_state
             ? c10::promoteTypes(lower, c_0.scalar_type())
             : lower;
}

template <c10::DeviceType device>
FiveTensors layer(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                  at::TensorList weights, const OptionalTensor& batch_sizes,
                  const OptionalTensor& lengths, const OptionalTensor& reset, bool reset_to_initial,
                  bool keep_states, bool recompute) {
  static const auto op = find_operator<LayerSignature>("fused_lstm::layer");
  const torch_private::WithoutAutocast guard;
  const bool projected = h_0.size(-1) != c_0.size(-1);
  const at::ScalarType dtype = type_of(device, batch_sizes.has_value() || projected, c_0);
  const auto cast = [&](const auto& x) { return at::autocast::cached_cast(dtype, x, device); };
  auto [output, h_n, c_n, cells, gates] =
      op.call(cast(input), cast(h_0), cast(c_0), cast(weights), batch_sizes, lengths, reset,
              reset_to_initial, keep_states, recompute);
  const at::ScalarType lower = at::autocast::get_autocast_dtype(device);
  if (projected) {  // the hidden state is a gemm
    output = at::autocast::cached_cast(lower, output, device);
    h_n = at::autocast::cached_cast(lower, h_n, device);
  }
  return {output, h_n, c_n, cells, gates};
}

template <c10::DeviceType device>
FourTensors cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                 at::TensorList weights, bool keep_states) {
  static const auto op = find_operator<CellSignature>("fused_lstm::cell");
  const torch_private::WithoutAutocast guard;
  const at::ScalarType dtype = type_of(device, /*adds_to_state=*/true, c_0);
  const auto cast = [&](const auto& x) { return at::autocast::cached_cast(dtype, x, device); };
  return op.call(cast(input), cast(h_0), cast(c_0), cast(weights), keep_states);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_lstm, AutocastCPU, m) {
  m.impl("layer", layer<c10::DeviceType::CPU>);
  m.impl("cell", cell<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(fused_lstm, AutocastCUDA, m) {
  m.impl("layer", layer<c10::DeviceType::CUDA>);
  m.impl("cell", cell<c10::DeviceType::CUDA>);
}

}  // namespace fused_lstm
