// The CUDA runtime on the host: attributes of kernels, the checks of a launch, occupancy, errors.
#include <cuda_runtime.h>

#include <map>
#include <mutex>

namespace emulator {

namespace {

struct KernelAttributes {
  int shared_memory = 48 * 1024;
  int cluster = 8;
};

std::map<const void*, KernelAttributes> attributes;
std::mutex mutex;  // one launch at a time

struct LaunchAttributes {
  unsigned cluster = 1;
  bool cooperative = false;
};
LaunchAttributes attributes_of(const cudaLaunchConfig_t& config) {
  LaunchAttributes attributes;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& its = config.attrs[i];
    if (its.id == cudaLaunchAttributeClusterDimension) attributes.cluster = its.val.clusterDim.x;
    if (its.id == cudaLaunchAttributeCooperative) attributes.cooperative = its.val.cooperative;
  }
  return attributes;
}

// Whether the launch is one that the GPU would take.
cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel) {
  const KernelAttributes its = attributes[kernel];
  const LaunchAttributes attributes = attributes_of(config);
  const unsigned resident = static_cast<unsigned>(properties.multiProcessorCount);
  if (config.gridDim.x == 0 || config.blockDim.x == 0 || config.gridDim.x % attributes.cluster != 0 ||
      attributes.cluster > static_cast<unsigned>(its.cluster) || attributes.cluster > resident) {
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes > static_cast<size_t>(its.shared_memory)) {
    return cudaErrorInvalidValue;
  }
  if (attributes.cooperative && config.gridDim.x > resident) return cudaErrorCooperativeLaunchTooLarge;
  return cudaSuccess;
}

}  // namespace

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  KernelAttributes& its = attributes[kernel];
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    its.cluster = value ? 16 : 8;
  } else {
    if (value > static_cast<int>(properties.sharedMemPerBlockOptin)) return cudaErrorInvalidValue;
    its.shared_memory = value;
  }
  return cudaSuccess;
}

cudaError_t active_clusters(int* clusters, const cudaLaunchConfig_t& config, const void* kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  const cudaError_t error = check(config, kernel);
  *clusters = error == cudaSuccess
                  ? properties.multiProcessorCount / static_cast<int>(attributes_of(config).cluster)
                  : 0;
  return error;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(mutex);
  const cudaError_t error = check(config, kernel);
  if (error != cudaSuccess) return error;
  return run(config, attributes_of(config).cluster, thread);
}

}  // namespace emulator

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unknown error";
}
