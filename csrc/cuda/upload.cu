#include "cuda/upload.h"

namespace fused_lstm {
namespace cuda {
namespace {

constexpr int kUploadCount = 256;
struct Upload {
  int64_t number[kUploadCount];
};

__global__ void __launch_bounds__(kUploadCount)
    upload_kernel(const __grid_constant__ Upload from, int count, int64_t* to) {
  if (static_cast<int>(threadIdx.x) < count) to[threadIdx.x] = from.number[threadIdx.x];
}

}  // namespace

cudaError_t upload(const int64_t* from, int64_t count, int64_t* to, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(kUploadCount);
  config.stream = stream;
  for (int64_t done = 0; done < count; done += kUploadCount) {
    const int each = static_cast<int>(count - done < kUploadCount ? count - done : kUploadCount);
    Upload part = {};
    for (int i = 0; i < each; ++i) part.number[i] = from[done + i];
    const cudaError_t error = cudaLaunchKernelEx(&config, upload_kernel, part, each, to + done);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace fused_lstm
