// What this compiler can compile for. Only macros, so that it can be included before a target is
// set.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define FUSED_LSTM_HAS_AMX 1
#endif
#endif
#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<avx512bf16intrin.h>)
#define FUSED_LSTM_HAS_AVX512BF16 1
#endif
#if __has_include(<avx512vnniintrin.h>)
#define FUSED_LSTM_HAS_AVX512VNNI 1
#endif
#if __has_include(<avxvnniintrin.h>)
#define FUSED_LSTM_HAS_AVXVNNI 1
#endif
#endif
#if defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__))
#define FUSED_LSTM_HAS_DOTPROD 1
#endif
