// Launches of kernels that want what a launch does not get by default: all of a multiprocessor's
// shared memory, clusters of any size, blocks that all run at once. Free of torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

namespace fused_lstm {
namespace cuda {

// Which blocks of a launch run at the same time.
struct Together {
  int cluster;       // so many consecutive ones, on neighbouring multiprocessors; 0: no cluster
  bool cooperative;  // all of them, or the launch is refused
};

struct LaunchConfig {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};

  LaunchConfig(int64_t blocks, int threads, int64_t shared_memory, Together together,
               cudaStream_t stream) {
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_memory);
    config.stream = stream;
    config.attrs = attributes;
    if (together.cluster > 0) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(together.cluster), 1, 1};
    }
    if (together.cooperative) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;  // config points to attributes
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};

// Allows the kernel the most shared memory that the current device has, and clusters of more than
// eight blocks where it has them. Once a kernel and device, and never less: a limit that is set
// before each launch could be lowered by another thread in between.
template <class Params>
cudaError_t prepare(void (*kernel)(Params)) {
  static std::mutex mutex;
  static std::map<std::pair<void (*)(Params), int>, cudaError_t> prepared;  // by kernel and device
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [its, is_new] = prepared.try_emplace({kernel, device}, cudaSuccess);
  if (!is_new) return its->second;
  int most = 0;
  cudaFuncAttributes attributes = {};
  cudaError_t error =
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 most - static_cast<int>(attributes.sharedSizeBytes));
  }
  // Refused by a GPU without clusters, or without large ones: a launch in such a cluster then is.
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) !=
      cudaSuccess) {
    cudaGetLastError();
  }
  return its->second = error;
}

// shared_memory: bytes of a block, beside what the kernel declares.
template <class Params>
cudaError_t launch(void (*kernel)(Params), const Params& params, int64_t blocks, int threads,
                   int64_t shared_memory, Together together, cudaStream_t stream) {
  if (const cudaError_t error = prepare(kernel)) return error;
  const LaunchConfig launch(blocks, threads, shared_memory, together, stream);
  return cudaLaunchKernelEx(&launch.config, kernel, params);
}

// How many clusters of so many blocks run at once on the current device; 0 where none can.
template <class Params>
int clusters_at_once(void (*kernel)(Params), int threads, int64_t shared_memory, int cluster) {
  const LaunchConfig launch(cluster, threads, shared_memory, {cluster, /*cooperative=*/false},
                            nullptr);
  int clusters = 0;
  if (prepare(kernel) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) == cudaSuccess) {
    return clusters;
  }
  cudaGetLastError();  // a refusal is an answer, not an error to be found later
  return 0;
}

// Whether the device still runs other kernels after `error` of a launch; then the error is cleared.
inline bool is_refusal(cudaError_t error) {
  if (error == cudaSuccess) return false;
  cudaGetLastError();
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace cuda
}  // namespace fused_lstm
