// How a kernel is launched whose blocks run together. Free of torch.
#pragma once

#include <cuda_runtime_api.h>

#include "plan/placement.h"

namespace fused_lstm {
namespace cuda {

struct LaunchShape {
  int blocks;
  int cluster;       // blocks of each cluster, or 1
  bool cooperative;  // all blocks run at once, or the launch is refused
};

template <class Params>
cudaError_t launch(void (*kernel)(Params), const Params& params, const LaunchShape& shape,
                   int shared_memory, cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           shared_memory);
  if (error != cudaSuccess) return error;
  if (shape.cluster > 1) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_memory);
  config.stream = stream;
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  if (shape.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, params);
}

// The blocks of the largest cluster, a power of two, that the current device runs of the kernel with
// so many bytes of shared memory each; 0 without clusters.
template <class Params>
int largest_cluster_of(void (*kernel)(Params), int shared_memory) {
  for (int blocks = kMaxCluster; blocks > 1; blocks /= 2) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory) !=
            cudaSuccess ||
        cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) !=
            cudaSuccess) {
      continue;
    }
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kBlockThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_memory);
    config.attrs = &attribute;
    config.numAttrs = 1;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess && clusters > 0) {
      return blocks;
    }
  }
  cudaGetLastError();  // an older GPU's refusal is an answer, not an error to be found later
  return 0;
}

}  // namespace cuda
}  // namespace fused_lstm
