// GEMMs by cuBLAS, on the current stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <cublas_v2.h>

namespace fused_lstm {
namespace cuda {

// An operand of a GEMM in memory, row-major or transposed.
struct Factor {
  const void* data;
  int64_t leading;  // elements from one row to the next; transposed: from one column
  bool transposed;
};

// Whether nn.LSTM would take float32 GEMMs in TF32.
bool allows_tf32();

// GEMMs whose operands have one type. They accumulate in float32 or wider.
class Cublas {
 public:
  // tf32: float32 operands are rounded to TF32.
  Cublas(at::ScalarType operand, bool tf32);

  // out [M, N] = a [M, K] b [K, N], added to out if `accumulate`. out is row-major and contiguous.
  void operator()(void* out, at::ScalarType out_type, int64_t M, int64_t N, int64_t K,
                  const Factor& a, const Factor& b, bool accumulate) const;

  // The same for tensors; a and b may be transposed views.
  void operator()(at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) const;

 private:
  cublasHandle_t handle_;
  cudaDataType_t operand_;
  bool is_double_;
  cublasComputeType_t compute_;
};

}  // namespace cuda
}  // namespace fused_lstm
