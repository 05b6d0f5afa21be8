// The dot product of four 8-bit integers in each lane, by what an instruction set has for it. All
// are exact, so that the sums are the same on each processor: |x| and |w| are at most 127.
//
//   kOffset   what is added to x, for instructions that multiply unsigned by signed bytes
#pragma once

#if defined(FUSED_LSTM_NEON_DOTPROD)
#include <arm_neon.h>
#endif

#include "cpu/simd.h"

namespace fused_lstm::cpu {
namespace {

#if defined(FUSED_LSTM_AVX512VNNI)
constexpr int kOffset = 128;
FUSED_LSTM_INLINE Ints add_dot(Ints sum, Ints x, Ints w) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}
#elif defined(FUSED_LSTM_AVXVNNI)
constexpr int kOffset = 128;
FUSED_LSTM_INLINE Ints add_dot(Ints sum, Ints x, Ints w) {
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
}
#elif defined(FUSED_LSTM_NEON_DOTPROD)
constexpr int kOffset = 0;
FUSED_LSTM_INLINE Ints add_dot(Ints sum, Ints x, Ints w) {
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)x, (int8x16_t)w);
}
#elif defined(__x86_64__) && FUSED_LSTM_VECTOR_BYTES >= 32
// |x| times w with the sign of x: sums of two products are at most 2 * 127^2, within 16 bits, where
// an unsigned x of up to 255 would saturate.
constexpr int kOffset = 0;
#if FUSED_LSTM_VECTOR_BYTES == 64
FUSED_LSTM_INLINE Ints add_dot(Ints sum, Ints x, Ints w) {
  const __m512i signed_w =
      _mm512_mask_sub_epi8((__m512i)w, _mm512_movepi8_mask((__m512i)x), __m512i{}, (__m512i)w);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8((__m512i)x), signed_w);
  return sum + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
#else
FUSED_LSTM_INLINE Ints add_dot(Ints sum, Ints x, Ints w) {
  const __m256i signed_w = _mm256_sign_epi8((__m256i)w, (__m256i)x);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)x), signed_w);
  return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#endif
#elif defined(__SSE2__)
constexpr int kOffset = 0;
FUSED_LSTM_INLINE Ints add_dot(Ints sum, Ints x, Ints w) {
  // The even and the odd bytes as 16-bit integers
  const auto even = [](Ints bytes) { return _mm_srai_epi16(_mm_slli_epi16((__m128i)bytes, 8), 8); };
  const auto odd = [](Ints bytes) { return _mm_srai_epi16((__m128i)bytes, 8); };
  return sum + (Ints)_mm_madd_epi16(even(x), even(w)) + (Ints)_mm_madd_epi16(odd(x), odd(w));
}
#else
constexpr int kOffset = 0;
FUSED_LSTM_INLINE Ints add_dot(Ints sum, Ints x, Ints w) {
  for (int shift = 24; shift >= 0; shift -= 8) {  // each byte, sign-extended to its lane
    sum += ((x << shift) >> 24) * ((w << shift) >> 24);
  }
  return sum;
}
#endif

}  // namespace
}  // namespace fused_lstm::cpu
