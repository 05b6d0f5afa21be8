// The CPU kernels of frozen layers in int8, by AVX-VNNI.
#include "cpu/compiler.h"
#ifdef FUSED_LSTM_HAS_AVXVNNI
#include <type_traits>

#define FUSED_LSTM_ISA avxvnni
#define FUSED_LSTM_VECTOR_BYTES 32
#define FUSED_LSTM_TILE_ROWS 3
#define FUSED_LSTM_AVXVNNI 1

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avxvnni")
#endif
#include "cpu/tables.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
