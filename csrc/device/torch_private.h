// Parts of torch that it does not promise to keep; each says what is done where it is missing.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#if __has_include(<ATen/EmptyTensor.h>)
#include <ATen/EmptyTensor.h>
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

}  // namespace torch_private
}  // namespace fused_lstm
