// The persistent kernels of bfloat16.
#include "cuda/persistent/dispatch.h"

namespace fused_lstm {
namespace cuda {

template <>
cudaError_t launch_forward(Kernel kernel, Precision /*precision: bits16*/,
                           const PersistentForwardParams<BFloat16Float>& params,
                           cudaStream_t stream) {
  return launch_forward_as<Mma<BFloat16Float, 1>, Precision::bits16>(kernel, params, stream);
}
template <>
cudaError_t launch_backward(Kernel kernel, Precision /*precision: bits16*/,
                            const PersistentBackwardParams<BFloat16Float>& params,
                            cudaStream_t stream) {
  return launch_backward_as<Mma<BFloat16Float, 1>, Precision::bits16>(kernel, params, stream);
}

int largest_cluster(int64_t shared_memory) {
  return largest_cluster_of(forward_kernel<Mma<BFloat16Float, 1>, 1, 32, 0, true>,
                            static_cast<int>(shared_memory));
}

}  // namespace cuda
}  // namespace fused_lstm
