// Under autocast the operators run in its lower precision where nn.LSTM's results have it; the cell
// state stays in float32 inside.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "device/torch_private.h"
#include "operators/operators.h"

namespace fused_lstm {
namespace {

// The type that a call runs in. On a CPU nn.LSTM with a packed sequence or a projection, and
// nn.LSTMCell, add GEMMs in autocast's type to a cell state in the caller's.
at::ScalarType type_of(c10::DeviceType device, bool adds_to_state, at::ScalarType state) {
  const at::ScalarType lower = at::autocast::get_autocast_dtype(device);
  return device == c10::DeviceType::CPU && adds_to_state ? c10::promoteTypes(lower, state) : lower;
}

template <c10::DeviceType device>
LayerResult layer(const LayerArguments& a, bool keep_states, bool recompute) {
  static const auto op = find_operator<LayerSignature>("fused_lstm::layer");
  const torch_private::WithoutAutocast guard;
  const bool projected = a.h_0.defined() && a.c_0.defined()
                             ? a.h_0.size(-1) != a.c_0.size(-1)
                             : a.weights.size() / directions_of(a.weights) % 2 == 1;
  const bool packed = a.options.batch_sizes.has_value();
  const at::ScalarType dtype =
      type_of(device, packed || projected, (a.c_0.defined() ? a.c_0 : a.input).scalar_type());
  const auto cast = [&](const auto& x) { return at::autocast::cached_cast(dtype, x, device); };
  auto [output, h_n, c_n, cells, gates] =
      call(op, {cast(a.input), cast(a.h_0), cast(a.c_0), cast(a.weights), a.options}, keep_states,
           recompute);
  if (projected) {  // the hidden state is a GEMM's result
    const at::ScalarType lower = at::autocast::get_autocast_dtype(device);
    output = at::autocast::cached_cast(lower, output, device);
    h_n = at::autocast::cached_cast(lower, h_n, device);
  }
  return {output, h_n, c_n, cells, gates};
}

// All layers in the first one's type, which an upper one has by itself: its input has that type.
template <c10::DeviceType device>
StackResult stack(const StackArguments& arguments, bool keep_states, bool recompute) {
  static const auto op = find_operator<StackSignature>("fused_lstm::stack");
  const torch_private::WithoutAutocast guard;
  const LayerArguments& a = arguments.all;
  const at::ScalarType dtype = type_of(device, a.options.batch_sizes.has_value(),
                                       (a.c_0.defined() ? a.c_0 : a.input).scalar_type());
  const auto cast = [&](const auto& x) { return at::autocast::cached_cast(dtype, x, device); };
  return call(
      op, {{cast(a.input), cast(a.h_0), cast(a.c_0), cast(a.weights), a.options}, arguments.layers},
      keep_states, recompute);
}

template <c10::DeviceType device>
CellResult cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                at::TensorList weights, bool keep_states) {
  static const auto op = find_operator<CellSignature>("fused_lstm::cell");
  const torch_private::WithoutAutocast guard;
  const at::ScalarType dtype = type_of(device, /*adds_to_state=*/true, c_0.scalar_type());
  const auto cast = [&](const auto& x) { return at::autocast::cached_cast(dtype, x, device); };
  return op.call(cast(input), cast(h_0), cast(c_0), cast(weights), keep_states);
}

template <c10::DeviceType device>
void register_casts(torch::Library& m) {
  m.impl("layer", layer_kernel<layer<device>>);
  m.impl("stack", stack_kernel<stack<device>>);
  m.impl("cell", cell<device>);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_lstm, AutocastCPU, m) { register_casts<c10::DeviceType::CPU>(m); }
TORCH_LIBRARY_IMPL(fused_lstm, AutocastCUDA, m) { register_casts<c10::DeviceType::CUDA>(m); }

}  // namespace fused_lstm
