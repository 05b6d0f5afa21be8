// The persistent kernels of float32.
#include "cuda/persistent/dispatch.h"

namespace fused_lstm {
namespace cuda {

template <>
cudaError_t launch_forward(Kernel kernel, Precision precision,
                           const PersistentForwardParams<Float>& params, cudaStream_t stream) {
  return precision == Precision::tf32
             ? launch_forward_as<Mma<Float, 1>, Precision::tf32>(kernel, params, stream)
             : launch_forward_as<Mma<Float, 3>, Precision::tf32_split>(kernel, params, stream);
}
template <>
cudaError_t launch_backward(Kernel kernel, Precision precision,
                            const PersistentBackwardParams<Float>& params, cudaStream_t stream) {
  return precision == Precision::tf32
             ? launch_backward_as<Mma<Float, 1>, Precision::tf32>(kernel, params, stream)
             : launch_backward_as<Mma<Float, 3>, Precision::tf32_split>(kernel, params, stream);
}

}  // namespace cuda
}  // namespace fused_lstm
