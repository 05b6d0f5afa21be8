// The CPU kernels for bfloat16 operands by AVX512-BF16.
#include "cpu/compiler.h"
#ifdef FUSED_LSTM_HAS_AVX512BF16
#include <type_traits>

#define FUSED_LSTM_ISA avx512bf16
#define FUSED_LSTM_VECTOR_BYTES 64
#define FUSED_LSTM_TILE_ROWS 6
#define FUSED_LSTM_BF16_OPERANDS 1

#ifdef __clang__
#pragma clang attribute push(                                                          \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#endif
#include "cpu/tables.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
