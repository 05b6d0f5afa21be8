// The CPU kernels of frozen layers in int8, by AVX512-VNNI.
#include "cpu/compiler.h"
#ifdef FUSED_LSTM_HAS_AVX512VNNI
#include <type_traits>

#define FUSED_LSTM_ISA avx512vnni
#define FUSED_LSTM_VECTOR_BYTES 64
#define FUSED_LSTM_TILE_ROWS 6
#define FUSED_LSTM_AVX512VNNI 1

#ifdef __clang__
#pragma clang attribute push(                                                          \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif
#include "cpu/tables.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
