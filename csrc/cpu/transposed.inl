// GEMM with a weight that is used only once (T == 1, say), so that packing it does not pay. The
// activations are transposed instead: row r goes to SIMD lane r % lanes.
//
//   x [rows, depth]                transposed [groups, depth, lanes], groups = ceil(rows / lanes)
//
//     row 0 | a b c ..               group 0, k=0 | a A .. |  x  broadcast W[unit][0]
//     row 1 | A B C ..     ->                 k=1 | b B .. |  x  broadcast W[unit][1]
//      :                                      k=2 | c C .. |  :   summed over k: a lane a row
//
// The sums [units, groups of rows] are transposed back into a tile [rows, 4, lanes].
#pragma once

#include "cpu/gemm.inl"

namespace fused_lstm::cpu {
namespace {

// x: pointers to `rows` rows [depth]. to: [ceil(rows / lanes), depth, lanes]; the lanes past the
// last row hold copies that are ignored.
template <class V, class Scalar = typename Lanes<V>::Scalar>
void transpose_rows(const Scalar* const* x, int64_t rows, int64_t depth, Scalar* to) {
  constexpr int lanes = Lanes<V>::count;
  for (int64_t first = 0; first < rows; first += lanes, to += depth * lanes) {
    const Scalar* pointers[lanes];
    for (int n = 0; n < lanes; ++n) pointers[n] = x[first + n < rows ? first + n : first];
    for_vectors<V>(0, depth, [&](int64_t k, int part) {
      V square[lanes];
      for (int n = 0; n < lanes; ++n) square[n] = load<V>(pointers[n] + k, part);
      transpose(square);
      for (int n = 0; n < part; ++n) store<V>(to + (k + n) * lanes, square[n], lanes);
    });
  }
}

// sums [rows of the weight, groups] = weight [rows, depth] times transposed [groups, depth, lanes].
template <int rows, int groups, class V, class Scalar = typename Lanes<V>::Scalar>
FUSED_LSTM_INLINE void multiply_transposed(const Scalar* weight, int64_t depth,
                                           const Scalar* transposed, V (*sums)[kTileVectors]) {
  constexpr int lanes = Lanes<V>::count;
  constexpr int line = 64 / sizeof(Scalar);
  constexpr int copies = groups == 1 ? 2 : 1;  // few sums do not hide an FMA's latency
  V partial[copies][rows][groups] = {};
  const auto accumulate = [&](int64_t k, V(&to)[rows][groups]) {
    V x[groups];
    for (int g = 0; g < groups; ++g) x[g] = load<V>(transposed + (g * depth + k) * lanes, lanes);
    for (int r = 0; r < rows; ++r) {
      const V factor = broadcast<V>(weight[r * depth + k]);
      for (int g = 0; g < groups; ++g) to[r][g] += factor * x[g];
    }
  };
  int64_t k = 0;
  for (; k + line <= depth; k += line) {
    for (int r = 0; r < rows; ++r) __builtin_prefetch(weight + (rows + r) * depth + k);
    for (int n = 0; n < line; n += copies) {
      for (int copy = 0; copy < copies; ++copy) accumulate(k + n + copy, partial[copy]);
    }
  }
  for (; k < depth; ++k) accumulate(k, partial[0]);
  for (int r = 0; r < rows; ++r) {
    for (int g = 0; g < groups; ++g) {
      sums[r][g] = copies == 2 ? partial[0][r][g] + partial[copies - 1][r][g] : partial[0][r][g];
    }
  }
}

// to [rows, 4, lanes] = start + transposed [groups, depth, lanes] times the rows of a weight [4H,
// depth] of the units j .. of each gate, for up to 4 groups of rows. Rows of `start` [4, lanes] are
// start_stride elements apart.
template <class V, class Scalar = typename Lanes<V>::Scalar>
void multiply_transposed_tile(const Scalar* transposed, int64_t rows, const Scalar* weight,
                              int64_t depth, int64_t H, int64_t j, const Scalar* start,
                              int64_t start_stride, Scalar* to) {
  constexpr int lanes = Lanes<V>::count, width = kTileVectors * lanes;
  const int64_t units = H - j < lanes ? H - j : lanes;
  with_constant<kTileVectors>((rows + lanes - 1) / lanes, [&](auto constant) {
    constexpr int groups = decltype(constant)::value;
    // Sums that fill the register file, and enough of them to hide an FMA's latency.
    constexpr int highest = groups > 2 ? FUSED_LSTM_TILE_ROWS : FUSED_LSTM_TILE_ROWS / 3 * 4;
    for (int gate = 0; gate < kTileVectors; ++gate) {
      V sums[lanes][kTileVectors] = {};
      Blocks(units, 1, highest).for_each([&](int64_t unit, int64_t count) {
        with_constant<highest>(count, [&](auto height) {
          multiply_transposed<decltype(height)::value, groups>(
              weight + (gate * H + j + unit) * depth, depth, transposed, sums + unit);
        });
      });
      for (int g = 0; g < groups; ++g) {
        V square[lanes];
        for (int n = 0; n < lanes; ++n) square[n] = sums[n][g];
        transpose(square);
        for (int n = 0; n < lanes && g * lanes + n < rows; ++n) {
          const int64_t row = g * lanes + n;
          const V from = load<V>(start + row * start_stride + gate * lanes, lanes);
          store<V>(to + row * width + gate * lanes, from + square[n], lanes);
        }
      }
    }
  });
}

}  // namespace
}  // namespace fused_lstm::cpu
