// What the GEMMs need of bfloat16 operands, by AVX512-BF16: dot products of pairs, accumulated in
// float32. For BFloat16Operands, beside what the others have in pack.inl, gemm.inl and gemv.inl.
//
//   a panel [depth / 2, 4 vectors, 16 lanes, 2]: pairs of k, the last of an odd depth with a zero
//
//     lanes     columns 0 .. 15                   a row of x
//     k = 0, 1  | w0 w1 | w0 w1 | ..               | x0 x1 | x2 x3 | ..    a pair is broadcast
//         2, 3  | w2 w3 | w2 w3 | ..
#pragma once

#include "cpu/gradients.inl"

namespace fused_lstm::cpu {
namespace {

// A pair of k at a time.
template <>
struct Multiply<Floats, BFloat16> {
  static constexpr int step = kDepthStep<BFloat16>;
  static FUSED_LSTM_INLINE Floats load_weights(const BFloat16* from) {
    return copy_in<Floats>(from, 2 * Lanes<Floats>::count);
  }
  static FUSED_LSTM_INLINE Floats broadcast_pair(int32_t pair) {
    return (Floats)_mm512_set1_epi32(pair);
  }
  static FUSED_LSTM_INLINE Floats load_factor(const BFloat16* from) {
    int32_t pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return broadcast_pair(pair);
  }
  static FUSED_LSTM_INLINE Floats load_last_factor(const BFloat16* from) {
    return broadcast_pair(from->bits);
  }
  static FUSED_LSTM_INLINE Floats add(Floats sum, Floats factor, Floats weights) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)factor, (__m512bh)weights);
  }
};

// Pairs of elements as the lanes of a vector: neighbours in a row, or of two rows (second or zero).
FUSED_LSTM_INLINE Floats pairs_in_row(const BFloat16* from, int64_t count) {
  const int64_t most = 2 * Lanes<Floats>::count;
  return copy_in<Floats>(from, static_cast<int>(count < most ? count : most));
}
FUSED_LSTM_INLINE Floats pairs_of_rows(const BFloat16* first, const BFloat16* second, int count) {
  auto bits = load_bits16<Floats>(first, count);
  if (second) bits |= load_bits16<Floats>(second, count) << 16;
  return bits_as<Floats>(bits);
}

template <>
void pack(const Packing<BFloat16Operands>& w, int64_t panel, BFloat16* to) {
  to += panel * panel_size(w);
  constexpr int lanes = Lanes<Floats>::count;
  constexpr int64_t row = kTileVectors * lanes * 2;  // elements of a pair of k
  const auto store_pairs = [&](int64_t pair, int v, Floats pairs) {
    __builtin_memcpy(to + pair * row + v * lanes * 2, &pairs, sizeof(pairs));
  };
  for (int v = 0; v < kTileVectors; ++v) {
    if (w.layout == PanelLayout::plain) {
      const int64_t column = (panel * kTileVectors + v) * lanes;
      const int count = count_columns(w, column);
      for (int64_t k = 0; k < panel_depth<BFloat16Operands>(w.rows); k += 2) {
        const BFloat16* const from = w.data + k * w.columns + column;
        store_pairs(k / 2, v,
                    k < w.rows
                        ? pairs_of_rows(from, k + 1 < w.rows ? from + w.columns : nullptr, count)
                        : Floats{});
      }
    } else {
      const RowRange rows = rows_of_vector(w, panel, v);
      const BFloat16* const from = w.data + rows.first * w.columns;
      const int64_t pairs = panel_depth<BFloat16Operands>(w.columns) / 2;
      for_vectors<Floats>(0, pairs, [&](int64_t pair, int part) {
        Floats square[lanes];
        for (int n = 0; n < lanes; ++n) {
          const int64_t left = n < rows.count ? w.columns - 2 * pair : 0;
          square[n] = pairs_in_row(from + n * w.columns + 2 * pair, left < 0 ? 0 : left);
        }
        transpose(square);
        for (int n = 0; n < part; ++n) store_pairs(pair + n, v, square[n]);
      });
    }
  }
}

// Pairs of rows side by side, the last of an odd number with zeros.
template <>
void pack_right(const RightFactor<BFloat16Operands>& right, int64_t k, int64_t depth, int64_t j,
                int64_t columns, BFloat16* to) {
  const int64_t width = padded_columns<BFloat16Operands>(columns);
  for (int64_t n = 0; n < depth; n += 2, to += 2 * width) {
    const BFloat16* const first = right.row(k + n) + j;
    const BFloat16* const second = n + 1 < depth ? right.row(k + n + 1) + j : nullptr;
    for_vectors<Floats>(0, columns, [&](int64_t column, int count) {
      const Floats pairs = pairs_of_rows(first + column, second ? second + column : nullptr, count);
      __builtin_memcpy(to + 2 * column, &pairs, sizeof(pairs));
    });
  }
}

template <>
void copy_and_sum<BFloat16Operands>(const BFloat16* from, int64_t from_stride, int64_t depth,
                                    int64_t columns, BFloat16* to, int64_t to_stride, float* sums,
                                    bool accumulate) {
  for_vectors<Floats>(0, columns, [&](int64_t j, int count) {
    Floats sum = {};
    for (int64_t k = 0; k < depth; k += 2) {
      const BFloat16* const first = from + k * from_stride + j;
      const BFloat16* const second = k + 1 < depth ? first + from_stride : nullptr;
      copy_out(to + k * to_stride + 2 * j, pairs_of_rows(first, second, count), 2 * count);
      sum += load<Floats>(first, count);
      if (second) sum += load<Floats>(second, count);
    }
    if (sums) {
      store<Floats>(sums + j, accumulate ? load<Floats>(sums + j, count) + sum : sum, count);
    }
  });
}

template <class V>
struct Dot<V, BFloat16, BFloat16> {
  static constexpr int width = 2 * Lanes<V>::count;
  static FUSED_LSTM_INLINE V load_x(const BFloat16* from, int count) {
    return copy_in<V>(from, count);
  }
  static FUSED_LSTM_INLINE V load_w(const BFloat16* from, int count) {
    return copy_in<V>(from, count);
  }
  static FUSED_LSTM_INLINE V add(V sum, V x, V w) {
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
};

}  // namespace
}  // namespace fused_lstm::cpu
