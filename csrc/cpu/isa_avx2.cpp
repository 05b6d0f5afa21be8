// The CPU kernels for AVX2 with FMA.
#ifdef __x86_64__
#include <type_traits>

#define FUSED_LSTM_NAME "avx2"
#define FUSED_LSTM_ISA avx2
#define FUSED_LSTM_VECTOR_BYTES 32
#define FUSED_LSTM_TILE_ROWS 3

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "cpu/tables.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
