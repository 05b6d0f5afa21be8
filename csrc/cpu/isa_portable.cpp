// The CPU kernels for the instruction set that the compiler assumes anyway (SSE2, NEON).
#include <type_traits>

#define FUSED_LSTM_NAME "portable"
#define FUSED_LSTM_TABLE kernels_portable
#define FUSED_LSTM_VECTOR_BYTES 16
#define FUSED_LSTM_TILE_ROWS 3

#include "cpu/lstm.inl"
