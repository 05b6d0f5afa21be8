// Element types and lanes: what lets the cell's arithmetic stand once for a CUDA thread, a plain
// scalar and a SIMD vector. Free of torch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define FUSED_LSTM_INLINE __host__ __device__ __forceinline__
#else
#define FUSED_LSTM_INLINE inline __attribute__((always_inline))
#endif

namespace fused_lstm {

// 16-bit storage. All arithmetic on them is done in float32.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// Quantised: an element is this integer times a scale that its row has.
struct Int8 {
  int8_t value;
};

// The types of one layer.
//   Storage: the caller's: input, output, gates, weights.
//   Accum:   sums and the cell state: float32 or float64.
//   Operand: what GEMMs read.
//   State:   the hidden state between two steps, from which a GEMM's operand is made.
template <class Storage_, class Accum_, class Operand_, class State_ = Operand_>
struct Types {
  using Storage = Storage_;
  using Accum = Accum_;
  using Operand = Operand_;
  using State = State_;
};

// Everything below is compiled once for each instruction set. Internal linkage, because the linker
// would keep one copy for all of them.
namespace {

// The scalar of V, integers of the same width and of 16 bits, the number of lanes. cpu/simd.h has
// those of SIMD vectors.
template <class V>
struct Lanes;
template <>
struct Lanes<float> {
  using Scalar = float;
  using Integer = int32_t;
  using Bits16 = uint16_t;
  static constexpr int count = 1;
};
template <>
struct Lanes<double> {
  using Scalar = double;
  using Integer = int64_t;
  static constexpr int count = 1;
};

template <class To, class From>
FUSED_LSTM_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// `value` in every lane: x - 0 is x for every x, so only a broadcast is left.
template <class V>
FUSED_LSTM_INLINE V broadcast(typename Lanes<V>::Scalar value) {
  return value - V{};
}

// cpu/simd.h has better ones for the vectors that have instructions for them.
template <class V>
struct Arithmetic {
  using Scalar = typename Lanes<V>::Scalar;

  // NaN passes through: a comparison with NaN is false and keeps x.
  static FUSED_LSTM_INLINE V at_most(V x, Scalar limit) {
    const V bound = broadcast<V>(limit);
    return x > bound ? bound : x;
  }
  static FUSED_LSTM_INLINE V at_least(V x, Scalar limit) {
    const V bound = broadcast<V>(limit);
    return x < bound ? bound : x;
  }
  // x / y, and x / (y + rest), for y between 0.5 and 2^126 and a rest below its rounding, which may
  // be ignored.
  static FUSED_LSTM_INLINE V quotient(V x, V y) { return x / y; }
  static FUSED_LSTM_INLINE V quotient(V x, V y, V /*rest*/) { return x / y; }
};

// 16-bit floating-point formats, as bits in the 32-bit lanes I, to float lanes F and back.
// F and I are float and int32_t, or vectors of them. Rounding is to nearest even.
template <class F, class I>
FUSED_LSTM_INLINE F from_bfloat16(I bits) {
  return bits_as<F>(bits << 16);
}

template <class F, class I>
FUSED_LSTM_INLINE I to_bfloat16(F x) {
  const I bits = bits_as<I>(x);
  const I rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const I quiet_nan = (bits >> 16) | 0x40;
  return (x == x ? rounded : quiet_nan) & 0xffff;
}

template <class F, class I>
FUSED_LSTM_INLINE F from_half(I bits) {
  // 5 exponent bits shifted under float's 8 give a value 2^112 too small, subnormals included.
  const F magnitude = bits_as<F>((bits & 0x7fff) << 13) * 0x1p112f;
  const I finite = bits_as<I>(magnitude);
  const I special = finite | 0x7f800000;
  const I value = magnitude >= broadcast<F>(65536.0f) ? special : finite;
  return bits_as<F>(value | ((bits & 0x8000) << 16));
}

template <class F, class I>
FUSED_LSTM_INLINE I to_half(F x) {
  const I bits = bits_as<I>(x);
  const I magnitude = bits & 0x7fffffff;
  const F absolute = bits_as<F>(magnitude);
  const I normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 lines a subnormal's bits up with the end of the mantissa, rounded by the addition.
  const I subnormal = bits_as<I>(absolute + 0.5f) - 0x3f000000;
  const I infinity = I{} + 0x7c00;
  const I nan = I{} + 0x7e00;
  const I finite = absolute < broadcast<F>(0x1p-14f) ? subnormal : normal;
  const I overflow = x == x ? infinity : nan;
  const I value = absolute < broadcast<F>(65536.0f) ? finite : overflow;
  return value | ((bits >> 16) & 0x8000);
}

// Loads `count` consecutive elements into a block of lanes, and stores them. Part of a block is
// copied in powers of two, which needs no call and no loop; cpu/simd.h has AVX-512's masks.
template <int size, class T>
FUSED_LSTM_INLINE void copy_part(T* to, const T* from, int count) {
  if constexpr (size > 0) {
    const int done = count & ~(2 * size - 1);
    if (count & size) __builtin_memcpy(to + done, from + done, size * sizeof(T));
    copy_part<size / 2>(to, from, count);
  }
}
template <class Block, class T>
struct Partial {
  static constexpr int lanes = sizeof(Block) / sizeof(T);
  static FUSED_LSTM_INLINE Block load(const T* from, int count) {
    T part[lanes] = {};
    copy_part<lanes / 2>(part, from, count);
    Block block;
    __builtin_memcpy(&block, part, sizeof(Block));
    return block;
  }
  static FUSED_LSTM_INLINE void store(T* to, const Block& block, int count) {
    T part[lanes];
    __builtin_memcpy(part, &block, sizeof(Block));
    copy_part<lanes / 2>(to, part, count);
  }
};
template <class Block, class T>
FUSED_LSTM_INLINE Block copy_in(const T* from, int count) {
  if (count * sizeof(T) != sizeof(Block)) return Partial<Block, T>::load(from, count);
  Block block;
  __builtin_memcpy(&block, from, sizeof(Block));
  return block;
}
template <class Block, class T>
FUSED_LSTM_INLINE void copy_out(T* to, const Block& block, int count) {
  if (count * sizeof(T) != sizeof(Block)) return Partial<Block, T>::store(to, block, count);
  __builtin_memcpy(to, &block, sizeof(Block));
}

// 16-bit patterns to the 32-bit lanes of V and back. Scalars are accessed by their own type: nvcc
// splits a copy by bytes into one access for each byte.
template <class V, class T>
FUSED_LSTM_INLINE typename Lanes<V>::Integer load_bits16(const T* from, int count) {
  using Integer = typename Lanes<V>::Integer;
  if constexpr (Lanes<V>::count == 1) {
    return static_cast<Integer>(from->bits);
  } else {
    return __builtin_convertvector(copy_in<typename Lanes<V>::Bits16>(from, count), Integer);
  }
}
template <class V, class T>
FUSED_LSTM_INLINE void store_bits16(T* to, typename Lanes<V>::Integer bits, int count) {
  if constexpr (Lanes<V>::count == 1) {
    to->bits = static_cast<uint16_t>(bits);
  } else {
    copy_out(to, __builtin_convertvector(bits, typename Lanes<V>::Bits16), count);
  }
}

// Loads `count` elements (at most Lanes<V>::count), converted to the lanes of V, and stores them.
template <class V>
FUSED_LSTM_INLINE V load(const typename Lanes<V>::Scalar* from, int count) {
  if constexpr (Lanes<V>::count == 1) {
    return *from;
  } else {
    return copy_in<V>(from, count);
  }
}
template <class V>
FUSED_LSTM_INLINE V load(const BFloat16* from, int count) {
  return from_bfloat16<V, typename Lanes<V>::Integer>(load_bits16<V>(from, count));
}
template <class V>
FUSED_LSTM_INLINE V load(const Half* from, int count) {
#ifdef __CUDA_ARCH__
  return __half2float(bits_as<__half>(from->bits));
#else
  return from_half<V, typename Lanes<V>::Integer>(load_bits16<V>(from, count));
#endif
}
template <class V>
FUSED_LSTM_INLINE void store(typename Lanes<V>::Scalar* to, V value, int count) {
  if constexpr (Lanes<V>::count == 1) {
    *to = value;
  } else {
    copy_out(to, value, count);
  }
}
template <class V>
FUSED_LSTM_INLINE void store(BFloat16* to, V value, int count) {
#ifdef __CUDA_ARCH__
  to->bits = bits_as<uint16_t>(__float2bfloat16_rn(value));
#else
  store_bits16<V>(to, to_bfloat16<V, typename Lanes<V>::Integer>(value), count);
#endif
}
template <class V>
FUSED_LSTM_INLINE void store(Half* to, V value, int count) {
#ifdef __CUDA_ARCH__
  to->bits = bits_as<uint16_t>(__float2half_rn(value));
#else
  store_bits16<V>(to, to_half<V, typename Lanes<V>::Integer>(value), count);
#endif
}

}  // namespace
}  // namespace fused_lstm
