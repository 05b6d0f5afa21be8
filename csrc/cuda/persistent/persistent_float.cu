// The persistent kernels of float32.
#include "cuda/persistent/dispatch.h"

namespace fused_lstm {
namespace cuda {

template <>
cudaError_t launch_forward(Kernel kernel, Precision precision,
                           const PersistentForwardParams<Float>& params, cudaStream_t stream) {
  return precision == Precision::tf32
             ? launch_persistent<Mma<Float, 1>, Precision::tf32, false>(kernel, params, stream)
             : launch_persistent<Mma<Float, 3>, Precision::tf32_split, false>(kernel, params,
                                                                              stream);
}
template <>
cudaError_t launch_backward(Kernel kernel, Precision precision,
                            const PersistentBackwardParams<Float>& params, cudaStream_t stream) {
  return precision == Precision::tf32
             ? launch_persistent<Mma<Float, 1>, Precision::tf32, true>(kernel, params, stream)
             : launch_persistent<Mma<Float, 3>, Precision::tf32_split, true>(kernel, params,
                                                                             stream);
}

}  // namespace cuda
}  // namespace fused_lstm
