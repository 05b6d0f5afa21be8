// The CPU kernels for bfloat16 operands in AMX tiles, and of frozen layers in int8.
#include "cpu/compiler.h"
#ifdef FUSED_LSTM_HAS_AMX
#include <type_traits>

#define FUSED_LSTM_ISA amx
#define FUSED_LSTM_VECTOR_BYTES 64
#define FUSED_LSTM_TILE_ROWS 6
#define FUSED_LSTM_BF16_OPERANDS 1
#define FUSED_LSTM_AMX 1
#define FUSED_LSTM_AVX512VNNI 1

#ifdef __clang__
#pragma clang attribute push(                                                                              \
    __attribute__((target(                                                                                 \
        "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,amx-tile,amx-bf16,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")
#endif
#include "cpu/tables.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
