// Matrix gemm by cuBLAS, on the current stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <cublas_v2.h>

namespace fused_lstm {
namespace cuda {

// A factor of a gemm in memory: row by row, or column by column.
struct Factor {
  const void* data;
  int64_t leading;  // numbers from one row (column) to the next
  bool transposed;  // column by column
};

// Whether nn.LSTM would take float32 gemm in TF32.
bool allows_tf32();

// Cublas of factors of one type. Sums are in float32 or wider; TF32 exactly where nn.LSTM would
// use it.
class Cublas {
 public:
  explicit Cublas(at::ScalarType operand);

  // out [M, N] (+)= a [M, K] b [K, N]; out lies row by row without gaps.
  void operator()(void* out, at::ScalarType out_type, int64_t M, int64_t N, int64_t K,
                  const Factor& a, const Factor& b, bool accumulate) const;

  // The same of whole tensors; a and b may be transposed views.
  void operator()(at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) const;

 private:
  cublasHandle_t handle_;
  cudaDataType_t operand_;
  bool is_double_;
  cublasComputeType_t compute_;
};

}  // namespace cuda
}  // namespace fused_lstm
