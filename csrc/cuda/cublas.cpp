#include "cuda/cublas.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>

namespace fused_lstm {
namespace cuda {
namespace {

cudaDataType_t cuda_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return CUDA_R_32F;
    case at::kDouble:
      return CUDA_R_64F;
    case at::kHalf:
      return CUDA_R_16F;
    case at::kBFloat16:
      return CUDA_R_16BF;
    default:
      TORCH_CHECK(false, "fused_lstm: no CUDA kernel for dtype ", dtype);
  }
}

Factor factor_of(const at::Tensor& matrix) {
  // The stride of a dimension of size 1 is arbitrary.
  if (matrix.stride(1) == 1 || matrix.size(1) == 1) {
    return {matrix.const_data_ptr(), std::max(matrix.stride(0), matrix.size(1)), false};
  }
  TORCH_INTERNAL_ASSERT(matrix.stride(0) == 1 || matrix.size(0) == 1,
                        "an operand must be row-major or transposed");
  return {matrix.const_data_ptr(), std::max(matrix.stride(1), matrix.size(0)), true};
}

}  // namespace

bool allows_tf32() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

Cublas::Cublas(at::ScalarType operand, bool tf32)
    : handle_(at::cuda::getCurrentCUDABlasHandle()),
      operand_(cuda_type(operand)),
      is_double_(operand == at::kDouble) {
  compute_ = is_double_                      ? CUBLAS_COMPUTE_64F
             : tf32 && operand == at::kFloat ? CUBLAS_COMPUTE_32F_FAST_TF32
                                             : CUBLAS_COMPUTE_32F;
  // PyTorch sets the mode each time it gets the handle, so it need not be restored.
  TORCH_CUDABLAS_CHECK(cublasSetMathMode(
      handle_, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                         CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
}

void Cublas::operator()(void* out, at::ScalarType out_type, int64_t M, int64_t N, int64_t K,
                        const Factor& a, const Factor& b, bool accumulate) const {
  if (M == 0 || N == 0) return;
  const float one = 1, beta = accumulate ? 1 : 0;
  const double one_double = 1, beta_double = beta;
  // cuBLAS matrices are column-major: it sees each of these transposed, and out' = b' a'.
  TORCH_CUDABLAS_CHECK(cublasGemmEx_64(handle_, b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                                       a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, N, M, K,
                                       is_double_ ? static_cast<const void*>(&one_double) : &one,
                                       b.data, operand_, b.leading, a.data, operand_, a.leading,
                                       is_double_ ? static_cast<const void*>(&beta_double) : &beta,
                                       out, cuda_type(out_type), N, compute_, CUBLAS_GEMM_DEFAULT));
}

void Cublas::operator()(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
                        bool accumulate) const {
  if (a.size(1) == 0) {
    if (!accumulate) out.zero_();
    return;
  }
  (*this)(out.data_ptr(), out.scalar_type(), a.size(0), b.size(1), a.size(1), factor_of(a),
          factor_of(b), accumulate);
}

}  // namespace cuda
}  // namespace fused_lstm
