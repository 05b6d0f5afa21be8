// The persistent kernels of bfloat16.
#include <algorithm>

#include "cuda/persistent/dispatch.h"

namespace fused_lstm {
namespace cuda {

template <>
cudaError_t launch_forward(Kernel kernel, Precision /*precision: bits16*/,
                           const PersistentForwardParams<BFloat16Float>& params,
                           cudaStream_t stream) {
  return launch_persistent<Mma<BFloat16Float, 1>, Precision::bits16, false>(kernel, params, stream);
}
template <>
cudaError_t launch_backward(Kernel kernel, Precision /*precision: bits16*/,
                            const PersistentBackwardParams<BFloat16Float>& params,
                            cudaStream_t stream) {
  return launch_persistent<Mma<BFloat16Float, 1>, Precision::bits16, true>(kernel, params, stream);
}

void ask_driver(Gpu& gpu) {
  const auto kernel = forward_kernel<Mma<BFloat16Float, 1>, 1, 32, 0, 1, true, false, 32>;
  cudaFuncAttributes attributes = {};
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) {
    gpu.capability = std::min(gpu.capability, attributes.ptxVersion);
  } else {
    cudaGetLastError();
  }
  gpu.largest_cluster = 0;
  for (int i = 0; i < kClusterSizes; ++i) {
    const int blocks = 2 << i;
    gpu.clusters[i] = gpu.capability >= 90
                          ? clusters_at_once(kernel, kBlockThreads, gpu.shared_memory, blocks)
                          : 0;
    if (gpu.clusters[i] > 0) gpu.largest_cluster = blocks;
  }
}

}  // namespace cuda
}  // namespace fused_lstm
