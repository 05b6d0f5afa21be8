// Values from the host into device memory. Free of torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fused_lstm {
namespace cuda {

// Through the parameters of kernels: nothing waits, and a graph that captures it keeps its own
// copy.
cudaError_t upload(const int64_t* from, int64_t count, int64_t* to, cudaStream_t stream);

}  // namespace cuda
}  // namespace fused_lstm
