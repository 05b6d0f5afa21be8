// What csrc/cuda/launch.cpp asks of PyTorch's CUDA context.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

namespace at::cuda {
inline cublasHandle_t getCurrentCUDABlasHandle() { return nullptr; }
inline cudaStream_t getCurrentCUDAStream() { return nullptr; }
inline int current_device() { return 0; }
inline const cudaDeviceProp* getCurrentDeviceProperties() { return &emulator::properties; }
}  // namespace at::cuda
