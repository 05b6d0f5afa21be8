// The CPU kernels of frozen layers in int8, by the dot products of ARMv8.2 (FEAT_DotProd).
#include "cpu/compiler.h"
#ifdef FUSED_LSTM_HAS_DOTPROD
#include <type_traits>

#define FUSED_LSTM_ISA dotprod
#define FUSED_LSTM_VECTOR_BYTES 16
#define FUSED_LSTM_TILE_ROWS 3
#define FUSED_LSTM_NEON_DOTPROD 1

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("+dotprod")
#endif
#include "cpu/tables.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
