// Under autocast the operators run in its lower precision, as nn.LSTM does; the cell state stays
// in float32 inside.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "operators.h"

namespace fused_lstm {
namespace {

template <c10::DeviceType device>
FiveTensors layer(const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& cell,
                  at::TensorList weights, const OptionalTensor& batch_sizes,
                  const OptionalTensor& lengths, const OptionalTensor& reset, bool reset_to_initial,
                  bool keep_states, bool recompute) {
  static const auto op = find_operator<LayerSignature>("fused_lstm::layer");
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const auto& x) { return at::autocast::cached_cast(dtype, x, device); };
  return op.call(cast(input), cast(hidden), cast(cell), cast(weights), batch_sizes, lengths, reset,
                 reset_to_initial, keep_states, recompute);
}

template <c10::DeviceType device>
FourTensors cell(const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& cell,
                 at::TensorList weights, bool keep_states) {
  static const auto op = find_operator<CellSignature>("fused_lstm::cell");
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const auto& x) { return at::autocast::cached_cast(dtype, x, device); };
  return op.call(cast(input), cast(hidden), cast(cell), cast(weights), keep_states);
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
