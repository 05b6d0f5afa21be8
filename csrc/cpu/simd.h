// SIMD vectors for numeric.h, as GCC's and Clang's vector types: one source for every width.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <utility>

#include "core/numeric.h"

namespace fused_lstm {

namespace cpu {
// Whether gates divide, rather than multiply by a refined estimate of the reciprocal (plan.h).
extern bool divides;
}  // namespace cpu

namespace {

template <class T, int lanes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(lanes * sizeof(T))));
};

constexpr int kVectorBytes = FUSED_LSTM_VECTOR_BYTES;

using Floats = VectorOf<float, kVectorBytes / 4>::Type;
using Doubles = VectorOf<double, kVectorBytes / 8>::Type;

template <>
struct Lanes<Floats> {
  using Scalar = float;
  static constexpr int count = kVectorBytes / 4;
  using Integer = VectorOf<int32_t, count>::Type;
  using Bits16 = VectorOf<uint16_t, count>::Type;
};
template <>
struct Lanes<Doubles> {
  using Scalar = double;
  static constexpr int count = kVectorBytes / 8;
  using Integer = VectorOf<int64_t, count>::Type;
};

using Ints = Lanes<Floats>::Integer;
template <>
struct Lanes<Ints> {
  using Scalar = int32_t;
  using Integer = Ints;
  static constexpr int count = Lanes<Floats>::count;
};

template <class Scalar>
struct VectorFor;
template <>
struct VectorFor<float> {
  using Type = Floats;
};
template <>
struct VectorFor<double> {
  using Type = Doubles;
};

// The compiler would not emit min and max, because NaN must pass, and would always divide.
#if defined(__x86_64__) && FUSED_LSTM_VECTOR_BYTES >= 32
template <>
struct Arithmetic<Floats> {
  static FUSED_LSTM_INLINE Floats at_most(Floats x, float limit) {
    return minimum(broadcast<Floats>(limit), x);
  }
  static FUSED_LSTM_INLINE Floats at_least(Floats x, float limit) {
    return maximum(broadcast<Floats>(limit), x);
  }
  static FUSED_LSTM_INLINE Floats quotient(Floats x, Floats y) {
    if (cpu::divides) return x / y;
    const Floats inverse = reciprocal(y), ratio = x * inverse;
    return ratio + inverse * (x - y * ratio);
  }
  static FUSED_LSTM_INLINE Floats quotient(Floats x, Floats y, Floats rest) {
    if (cpu::divides) {
      const Floats ratio = x / y;
      return ratio - ratio * (rest * estimate(y));
    }
    const Floats inverse = reciprocal(y), ratio = x * inverse;
    return ratio + inverse * (x - y * ratio - rest * ratio);
  }

 private:
  // An estimate of 1 / y and Newton's step; the callers' last step corrects the quotient.
  static FUSED_LSTM_INLINE Floats reciprocal(Floats y) {
    const Floats rough = estimate(y);
    return rough + rough * (1.0f - y * rough);
  }
  // min and max return the second argument if either is NaN. (Masked forms: GCC warns of the
  // others.)
#if FUSED_LSTM_VECTOR_BYTES == 64
  static FUSED_LSTM_INLINE Floats minimum(Floats a, Floats b) {
    return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
  }
  static FUSED_LSTM_INLINE Floats maximum(Floats a, Floats b) {
    return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
  }
  static FUSED_LSTM_INLINE Floats estimate(Floats y) {
    return (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)y);
  }
#else
  static FUSED_LSTM_INLINE Floats minimum(Floats a, Floats b) {
    return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
  }
  static FUSED_LSTM_INLINE Floats maximum(Floats a, Floats b) {
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
  }
  static FUSED_LSTM_INLINE Floats estimate(Floats y) { return (Floats)_mm256_rcp_ps((__m256)y); }
#endif
};
#endif

#if defined(__x86_64__) && FUSED_LSTM_VECTOR_BYTES == 64
// AVX-512 loads and stores part of a vector by a mask.
template <class T>
struct Partial<Floats, T> {
  static FUSED_LSTM_INLINE Floats load(const T* from, int count) {
    const uint32_t mask = (uint32_t{1} << count) - 1;
    if constexpr (sizeof(T) == 4) {
      return bits_as<Floats>(_mm512_maskz_loadu_epi32(mask, from));
    } else {
      return bits_as<Floats>(_mm512_maskz_loadu_epi16(mask, from));
    }
  }
  static FUSED_LSTM_INLINE void store(T* to, const Floats& block, int count) {
    const uint32_t mask = (uint32_t{1} << count) - 1;
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_epi32(to, mask, bits_as<__m512i>(block));
    } else {
      _mm512_mask_storeu_epi16(to, mask, bits_as<__m512i>(block));
    }
  }
};
#endif

#ifdef FUSED_LSTM_BF16_OPERANDS
// AVX512-BF16 rounds to nearest even in one instruction; it flushes subnormals.
template <>
FUSED_LSTM_INLINE void store<Floats>(BFloat16* to, Floats value, int count) {
  using Bits16 = Lanes<Floats>::Bits16;
  copy_out(to, bits_as<Bits16>(_mm512_cvtneps_pbh((__m512)value)), count);
}
#endif

// Lane i of the result is lane indices[i] of the concatenation of a and b.
template <class V, int... indices>
FUSED_LSTM_INLINE V shuffle(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, indices...);
#else
  using Integer = typename Lanes<V>::Integer;
  return __builtin_shuffle(a, b, Integer{indices...});
#endif
}

// a and b as blocks of `size` lanes: their even blocks interleaved, a's first, or their odd blocks.
template <int size, class V, int... lane>
FUSED_LSTM_INLINE V even_blocks(V a, V b, std::integer_sequence<int, lane...>) {
  return shuffle<V, (lane & size ? Lanes<V>::count + lane - size : lane)...>(a, b);
}
template <int size, class V, int... lane>
FUSED_LSTM_INLINE V odd_blocks(V a, V b, std::integer_sequence<int, lane...>) {
  return shuffle<V, (lane & size ? Lanes<V>::count + lane : lane + size)...>(a, b);
}

// Transposes a square of vectors in place: swaps its off-diagonal quadrants, then within each
// quadrant, down to single lanes.
template <class V, int size = Lanes<V>::count / 2>
FUSED_LSTM_INLINE void transpose(V (&rows)[Lanes<V>::count]) {
  if constexpr (size > 0) {
    constexpr auto lanes = std::make_integer_sequence<int, Lanes<V>::count>{};
    for (int i = 0; i < Lanes<V>::count; ++i) {
      if (i & size) continue;
      const V a = rows[i], b = rows[i + size];
      rows[i] = even_blocks<size>(a, b, lanes);
      rows[i + size] = odd_blocks<size>(a, b, lanes);
    }
    transpose<V, size / 2>(rows);
  }
}

// Lane n of the result is the sum of all lanes of rows[n].
template <class V, int size = Lanes<V>::count / 2>
FUSED_LSTM_INLINE V horizontal_sums(V (&rows)[Lanes<V>::count]) {
  if constexpr (size > 0) {
    constexpr auto lanes = std::make_integer_sequence<int, Lanes<V>::count>{};
    for (int i = 0; i < size; ++i) {
      const V a = rows[i], b = rows[i + size];
      rows[i] = even_blocks<size>(a, b, lanes) + odd_blocks<size>(a, b, lanes);
    }
    return horizontal_sums<V, size / 2>(rows);
  } else {
    return rows[0];
  }
}

// Calls body(j, count) for begin .. end, `count` elements from j on, by vectors of V.
template <class V, class Body>
FUSED_LSTM_INLINE void for_vectors(int64_t begin, int64_t end, const Body& body) {
  constexpr int lanes = Lanes<V>::count;
  int64_t j = begin;
  for (; j + lanes <= end; j += lanes) body(j, lanes);
  if (j < end) body(j, static_cast<int>(end - j));
}

}  // namespace
}  // namespace fused_lstm
