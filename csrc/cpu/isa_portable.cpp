// The CPU kernels for the compiler's default instruction set (SSE2 on x86-64, NEON on aarch64).
#include <type_traits>

#define FUSED_LSTM_NAME "portable"
#define FUSED_LSTM_ISA portable
#define FUSED_LSTM_VECTOR_BYTES 16
#define FUSED_LSTM_TILE_ROWS 3

#include "cpu/tables.inl"
