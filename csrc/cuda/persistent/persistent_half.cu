// The persistent kernels of float16.
#include "cuda/persistent/dispatch.h"

namespace fused_lstm {
namespace cuda {

template <>
cudaError_t launch_forward(Kernel kernel, Precision /*precision: bits16*/,
                           const PersistentForwardParams<HalfFloat>& params, cudaStream_t stream) {
  return launch_persistent<Mma<HalfFloat, 1>, Precision::bits16, false>(kernel, params, stream);
}
template <>
cudaError_t launch_backward(Kernel kernel, Precision /*precision: bits16*/,
                            const PersistentBackwardParams<HalfFloat>& params,
                            cudaStream_t stream) {
  return launch_persistent<Mma<HalfFloat, 1>, Precision::bits16, true>(kernel, params, stream);
}

}  // namespace cuda
}  // namespace fused_lstm
