// Parts of torch that it does not promise to keep; each says what is done where it is missing.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/DimVector.h>
#if __has_include(<ATen/EmptyTensor.h>)
#include <ATen/EmptyTensor.h>
#endif
#if __has_include(<ATen/PythonTorchFunctionTLS.h>)
#include <ATen/PythonTorchFunctionTLS.h>
#define FUSED_LSTM_KNOWS_FUNCTION_MODES
#endif

namespace at {
namespace detail {}
}  // namespace at

namespace fused_lstm {
namespace torch_private {

// at::detail::empty_cpu: at::empty without the dispatcher, whose overhead is noticeable in small
// calls. Where it is missing, at::empty.
using namespace at::detail;
template <class Options>
auto empty_on_cpu(at::IntArrayRef sizes, const Options& options, int)
    -> decltype(at::Tensor(empty_cpu(sizes, options))) {
  return at::Tensor(empty_cpu(sizes, options));
}
template <class Options>
at::Tensor empty_on_cpu(at::IntArrayRef sizes, const Options& options, long) {
  return at::empty(sizes, options);
}

// c10::impl::ExcludeDispatchKeyGuard: no autocast while it lives. torch's tutorial on the
// dispatcher has it; without it at::autocast::set_autocast_enabled(device, false) does the same.
struct WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

// c10::TensorImpl::shallow_copy_and_detach: x.unsqueeze(0) below autograd without the dispatcher.
// Where it is missing, with it.
template <class Tensor>
auto one_step(const Tensor& x, int)
    -> decltype(Tensor(x.unsafeGetTensorImpl()->shallow_copy_and_detach(0, true))) {
  c10::DimVector sizes(x.sizes()), strides(x.strides());
  sizes.insert(sizes.begin(), 1);
  strides.insert(strides.begin(), x.numel());
  auto step = x.unsafeGetTensorImpl()->shallow_copy_and_detach(
      /*version_counter=*/0, /*allow_tensor_metadata_change=*/true);
  step->set_sizes_and_strides(sizes, strides);
  return Tensor(std::move(step));
}
template <class Tensor>
Tensor one_step(const Tensor& x, long) {
  return x.unsqueeze(0);
}

// at::Tensor::_fw_grad: whether forward mode has given the tensor a tangent. Where it is missing,
// it may have.
template <class Tensor>
auto has_tangent(const Tensor& tensor, int) -> decltype(tensor._fw_grad(0).defined()) {
  return tensor._fw_grad(/*level=*/0).defined();
}
template <class Tensor>
bool has_tangent(const Tensor&, long) {
  return true;
}

// c10::impl::tls_local_dispatch_key_set: the dispatch keys of a call whose tensors have `keys`: the
// modes of the thread (autocast, tracing, functorch, Python, inference) add some and exclude some.
// Without it a keyset with DispatchKey::Python says that a mode may take part.
inline c10::DispatchKeySet with_modes(c10::DispatchKeySet keys) {
  const c10::impl::LocalDispatchKeySet modes = c10::impl::tls_local_dispatch_key_set();
  return (keys | modes.included_) - modes.excluded_;
}

// at::impl::torch_function_mode_enabled: whether a TorchFunctionMode sees each call from Python.
// Where it is missing, one may.
inline bool function_mode_enabled() {
#ifdef FUSED_LSTM_KNOWS_FUNCTION_MODES
  return at::impl::torch_function_mode_enabled();
#else
  return true;
#endif
}

}  // namespace torch_private
}  // namespace fused_lstm
