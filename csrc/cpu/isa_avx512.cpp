// The CPU kernels for AVX-512.
#ifdef __x86_64__
#include <type_traits>

#define FUSED_LSTM_NAME "avx512"
#define FUSED_LSTM_ISA avx512
#define FUSED_LSTM_VECTOR_BYTES 64
#define FUSED_LSTM_TILE_ROWS 6

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#include "cpu/tables.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
