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

}  // namespace cuda
}  // namespace fused_lstm
