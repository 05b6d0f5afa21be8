// CUDA on the host: what csrc/cuda asks of the runtime (tests/emulator/cuda_runtime.cpp) and of the
// language. Kernels run on tests/emulator/machine.cpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __CUDA_ARCH_LIST__ 0

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
// Bytes of the 8 of y and x, chosen by the hexadecimal digits of `selector`, the lowest first.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = selector >> (4 * i) & 7;
    result |= static_cast<uint32_t>(both >> (8 * byte) & 0xff) << (8 * i);
  }
  return result;
}

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912,
};
const char* cudaGetErrorString(cudaError_t error);
// The last error of the process; reading it clears it, unless it is one that no call survives.
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative, cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    int cooperative;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed
};
struct cudaDeviceProp {
  int major, minor, multiProcessorCount;
  size_t sharedMemPerBlockOptin;
};
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int ptxVersion, binaryVersion;
};
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };

namespace emulator {

extern const cudaDeviceProp& properties;  // of the GPU that EMULATED_GPU names

cudaError_t get_attributes(cudaFuncAttributes* its);
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t active_clusters(int* clusters, const cudaLaunchConfig_t& config, const void* kernel);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& thread);

// Whether launches that the runtime has taken are recorded, not run: recorder.cpp.
bool records_launches();
void count_gemm();
struct Argument {
  const void* value;
  size_t bytes, alignment;
};
void record(const cudaLaunchConfig_t& config, const void* kernel,
            std::initializer_list<Argument> arguments);

// Runs a launch that the runtime has taken, to its end; one at a time.
cudaError_t run(const cudaLaunchConfig_t& config, unsigned cluster,
                const std::function<void()>& thread);

// Waits until all threads of the block, of the warp, or of the cluster have come here.
// The last of a warp calls `together` first.
void wait_for_block();
void wait_for_warp(const char* what, void* mine, void (*together)(void* const (&all)[32]));

}  // namespace emulator

extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the running thread

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp() {}  // threads of a warp meet in what they exchange

namespace emulator {

// What lane source(lane) of the warp brings; a lane's own value where there is no such lane.
template <class Value>
Value shuffle(const char* what, Value value, int (*source)(int lane, int by), int by) {
  struct Exchanged {
    Value value, result;
    int (*source)(int, int);
    int by;
  } mine = {value, value, source, by};
  wait_for_warp(what, &mine, [](void* const(&all)[32]) {
    for (int lane = 0; lane < 32; ++lane) {
      auto* const own = static_cast<Exchanged*>(all[lane]);
      const int from = own->source(lane, own->by);
      if (from < 32) own->result = static_cast<Exchanged*>(all[from])->value;
    }
  });
  return mine.result;
}

}  // namespace emulator

template <class Value>
Value __shfl_xor_sync(unsigned /*mask: all*/, Value value, int lane_mask) {
  const auto source = [](int lane, int by) { return lane ^ by; };
  return emulator::shuffle<Value>("__shfl_xor_sync", value, source, lane_mask);
}

template <class Value>
Value __shfl_down_sync(unsigned /*mask: all*/, Value value, unsigned delta) {
  const auto source = [](int lane, int by) { return lane + by; };
  return emulator::shuffle<Value>("__shfl_down_sync", value, source, static_cast<int>(delta));
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return emulator::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(Parameters...),
                                           const cudaLaunchConfig_t* config) {
  return emulator::active_clusters(clusters, *config, reinterpret_cast<const void*>(kernel));
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* its, Kernel* /*kernel*/) {
  return emulator::get_attributes(its);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream);
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr /*shared memory*/,
                                          int /*device*/) {
  *value = static_cast<int>(emulator::properties.sharedMemPerBlockOptin);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (emulator::records_launches()) {
    return emulator::launch(*config, reinterpret_cast<const void*>(kernel), [&] {
      const std::tuple<Parameters...> parameters(arguments...);
      std::apply(
          [&](const Parameters&... values) {
            emulator::record(*config, reinterpret_cast<const void*>(kernel),
                             {{&values, sizeof(Parameters), alignof(Parameters)}...});
          },
          parameters);
    });
  }
  return emulator::launch(*config, reinterpret_cast<const void*>(kernel),
                          [&] { kernel(arguments...); });
}
