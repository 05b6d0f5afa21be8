// What the GEMMs need of 8-bit integers: weights with a scale for each row, activations with one
// for each row of each step, products accumulated in int32, which is exact.
//
//   v = q scale, scale = max |v| / 127, q = round(v / scale)
//
//   a panel [depth / 4, 4 vectors, lanes, 4]: four k of a column side by side
//           [4 vectors, lanes] float: the columns' scales
//           [4 vectors, lanes] int32: kOffset times the columns' sums of q
//
//     lanes      columns 0, 1, ..                       a row of x: [depth] q + kOffset, its scale
//     k = 0..3   | w0 w1 w2 w3 | w0 w1 w2 w3 | ..          | x0 x1 x2 x3 | .. four are broadcast
//         4..7   | w4 w5 w6 w7 | w4 w5 w6 w7 | ..
//
// kOffset is int8_dot.inl's; the sums in the panel take it out again.
#pragma once

#include "cpu/gemm.inl"
#include "cpu/int8_dot.inl"

namespace fused_lstm::cpu {
namespace {

constexpr float kLargestInt8 = 127;

// Four k at a time. `x` has the same four in every lane.
template <>
struct Multiply<Ints, Int8> {
  static constexpr int step = kDepthStep<Int8>;
  static FUSED_LSTM_INLINE Ints load_weights(const Int8* from) {
    return copy_in<Ints>(from, step * Lanes<Ints>::count);
  }
  static FUSED_LSTM_INLINE Ints load_factor(const Int8* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof(four));
    return broadcast<Ints>(four);
  }
  static FUSED_LSTM_INLINE Ints load_last_factor(const Int8* from) { return load_factor(from); }
  static FUSED_LSTM_INLINE Ints add(Ints sum, Ints x, Ints weights) {
    return add_dot(sum, x, weights);
  }
};

// The bytes of a row of activations: padded elements and the scale.
template <>
inline int64_t row_size<FrozenInt8>(int64_t depth) {
  return panel_depth<FrozenInt8>(depth) + static_cast<int64_t>(sizeof(float));
}

FUSED_LSTM_INLINE float row_scale(const Int8* row, int64_t depth) {
  float scale;
  __builtin_memcpy(&scale, row + panel_depth<FrozenInt8>(depth), sizeof(scale));
  return scale;
}

// The scale of so large a magnitude, and its inverse: 0 where nothing is left of 1 / magnitude.
struct Scale {
  float scale, inverse;
};
FUSED_LSTM_INLINE Scale int8_scale(float magnitude) {
  const float inverse = magnitude > 1e-36f ? kLargestInt8 / magnitude : 0;
  return {magnitude / kLargestInt8, inverse};
}

// round(x * inverse), to even; between -127 and 127 where |x| is at most the scale's magnitude.
template <class V>
FUSED_LSTM_INLINE typename Lanes<V>::Integer quantized(V x, float inverse) {
  using Integer = typename Lanes<V>::Integer;
  constexpr float rounder = 12582912;  // 1.5 * 2^23: the sum's low bits are the integer
  V product = x * inverse;
  // Opaque: with an FMA, rounded once, some processors would have other integers.
#if defined(__x86_64__)
  __asm__("" : "+x"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#else
  __asm__("" : "+m"(product));
#endif
  return bits_as<Integer>(product + rounder) - bits_as<int32_t>(rounder);
}

// One row of activations [depth] as operands. A NaN or an infinity makes its scale NaN, and so all
// that is multiplied by it.
template <>
inline void make_operand_row<FrozenInt8, float>(const float* from, int64_t depth, Int8* to) {
  using V = Floats;
  using Bytes = VectorOf<int8_t, Lanes<V>::count>::Type;
  V most = {}, rest = {};
  for_vectors<V>(0, depth, [&](int64_t k, int count) {
    const V x = load<V>(from + k, count);
    const V magnitude = bits_as<V>(bits_as<Ints>(x) & INT32_MAX);
    most = magnitude > most ? magnitude : most;
    rest += x * 0.0f;
  });
  float magnitude = 0, nan = 0;
  for (int n = 0; n < Lanes<V>::count; ++n) {
    magnitude = most[n] > magnitude ? most[n] : magnitude;
    nan += rest[n];
  }
  const Scale scale = int8_scale(magnitude);
  for_vectors<V>(0, depth, [&](int64_t k, int count) {
    const Ints q = quantized(load<V>(from + k, count), scale.inverse) + kOffset;
    copy_out(reinterpret_cast<int8_t*>(to + k), __builtin_convertvector(q, Bytes), count);
  });
  const int64_t padded = panel_depth<FrozenInt8>(depth);
  for (int64_t k = depth; k < padded; ++k) to[k] = {};
  const float stored = scale.scale + nan;
  __builtin_memcpy(to + padded, &stored, sizeof(stored));
}

// One row of to [4, lanes] = start + scale (sums - offsets): the int32 sums of a row of x, whose
// scale is `scale`, with one panel, whose scales and offsets lie behind its elements.
FUSED_LSTM_INLINE void scale_sums(const Ints (&sums)[kTileVectors], float scale, const Int8* scales,
                                  const float* start, float* to) {
  using V = Floats;
  constexpr int lanes = Lanes<V>::count;
  const Int8* const offsets = scales + sizeof(float) * kTileVectors * lanes;
  for (int v = 0; v < kTileVectors; ++v) {
    V w;
    Ints offset;
    __builtin_memcpy(&w, scales + v * sizeof(V), sizeof(w));
    __builtin_memcpy(&offset, offsets + v * sizeof(V), sizeof(offset));
    const V product = __builtin_convertvector(sums[v] - offset, V);
    store<V>(to + v * lanes, load<V>(start + v * lanes, lanes) + scale * w * product, lanes);
  }
}

// to [rows, 4, lanes] = start + x times one panel, as multiply_panel.
template <int rows>
FUSED_LSTM_INLINE void multiply_panel_int8(const Int8* const* x, int64_t depth, const Int8* panel,
                                           const float* start, int64_t start_stride, float* to) {
  constexpr int64_t width = kTileVectors * Lanes<Floats>::count;
  const int64_t padded = panel_depth<FrozenInt8>(depth);
  const Int8* row[rows];
  for (int r = 0; r < rows; ++r) row[r] = x[r];
  Ints sums[rows][kTileVectors] = {};
  multiply_tile<true>(row, 1, padded, panel, width, sums);
  for (int r = 0; r < rows; ++r) {
    scale_sums(sums[r], row_scale(row[r], depth), panel + padded * width, start + r * start_stride,
               to + r * width);
  }
}

}  // namespace
}  // namespace fused_lstm::cpu
