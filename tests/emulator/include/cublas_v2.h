// cuBLAS's GEMM on the host, by its definition: column by column, sums in double.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/numeric.h"

using cublasHandle_t = void*;
enum cudaDataType_t { CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F };
enum cublasMath_t {
  CUBLAS_DEFAULT_MATH = 0,
  CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
};
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT };
enum cublasStatus_t { CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_INVALID_VALUE };

inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
  return CUBLAS_STATUS_SUCCESS;
}

inline double emulated_read(const void* data, cudaDataType_t type, int64_t i) {
  using namespace fused_lstm;
  switch (type) {
    case CUDA_R_32F:
      return static_cast<const float*>(data)[i];
    case CUDA_R_64F:
      return static_cast<const double*>(data)[i];
    case CUDA_R_16F:
      return load<float>(static_cast<const Half*>(data) + i, 1);
    case CUDA_R_16BF:
      return load<float>(static_cast<const BFloat16*>(data) + i, 1);
  }
  return 0;
}

inline void emulated_write(void* data, cudaDataType_t type, int64_t i, double value) {
  using namespace fused_lstm;
  switch (type) {
    case CUDA_R_32F:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      return;
    case CUDA_R_64F:
      static_cast<double*>(data)[i] = value;
      return;
    case CUDA_R_16F:
      return store<float>(static_cast<Half*>(data) + i, static_cast<float>(value), 1);
    case CUDA_R_16BF:
      return store<float>(static_cast<BFloat16*>(data) + i, static_cast<float>(value), 1);
  }
}

// C [m, n] = alpha op(A) [m, k] op(B) [k, n] + beta C, with cuBLAS's own conditions on types,
// leading dimensions and the type of alpha and beta.
inline cublasStatus_t cublasGemmEx_64(cublasHandle_t, cublasOperation_t opA, cublasOperation_t opB,
                                      int64_t m, int64_t n, int64_t k, const void* alpha,
                                      const void* A, cudaDataType_t typeA, int64_t lda,
                                      const void* B, cudaDataType_t typeB, int64_t ldb,
                                      const void* beta, void* C, cudaDataType_t typeC, int64_t ldc,
                                      cublasComputeType_t compute, cublasGemmAlgo_t) {
  const bool wide = compute == CUBLAS_COMPUTE_64F;
  const bool types = typeA == typeB && (typeC == typeA || (!wide && typeC == CUDA_R_32F)) &&
                     wide == (typeA == CUDA_R_64F);
  const bool sizes = lda >= (opA == CUBLAS_OP_N ? m : k) && ldb >= (opB == CUBLAS_OP_N ? k : n) &&
                     ldc >= m && lda > 0 && ldb > 0;
  if (!types || !sizes) return CUBLAS_STATUS_INVALID_VALUE;
  emulator::count_gemm();
  if (emulator::records_launches()) return CUBLAS_STATUS_SUCCESS;
  const double a = wide ? *static_cast<const double*>(alpha) : *static_cast<const float*>(alpha);
  const double b = wide ? *static_cast<const double*>(beta) : *static_cast<const float*>(beta);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        sum += emulated_read(A, typeA, opA == CUBLAS_OP_N ? l * lda + i : i * lda + l) *
               emulated_read(B, typeB, opB == CUBLAS_OP_N ? j * ldb + l : l * ldb + j);
      }
      const int64_t at = j * ldc + i;
      emulated_write(C, typeC, at, a * sum + (b == 0 ? 0 : b * emulated_read(C, typeC, at)));
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}
