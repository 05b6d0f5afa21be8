// GEMMs of so few rows that the weight is read once, as nn.LSTM stores it, without packing.
//
//   gemv: x W^T, dot products            accumulate_gemv: c += a W, W's rows added up
//
//     W row n    | w w w w | w w w w |      a[k] x | W row k: a vector of columns | ..
//     x[r]       | x x x x | x x x x |      a[k+1] x | W row k + 1                | ..
//                    \ FMA, lane by lane      :  8 rows of W at once, added to c [columns]
//     partial[n] | p p p p |
//                    \ added up: lane n of the result
#pragma once

#include "cpu/pack.inl"

namespace fused_lstm::cpu {
namespace {

// How dot products read elements X of the activations and T of the weight: `width` at a time.
template <class V, class X, class T>
struct Dot {
  static constexpr int width = Lanes<V>::count;
  static FUSED_LSTM_INLINE V load_x(const X* from, int count) { return load<V>(from, count); }
  static FUSED_LSTM_INLINE V load_w(const T* from, int count) { return load<V>(from, count); }
  static FUSED_LSTM_INLINE V add(V sum, V x, V w) { return sum + x * w; }
};

// sums[r], lane n: row n of w [count, depth] times x[r] [depth]. Lanes from `count` on are zero.
template <int rows, class V, class X, class T>
FUSED_LSTM_INLINE void gemv(const T* w, int64_t depth, int64_t count, const X* const (&x)[rows],
                            V (&sums)[rows]) {
  using D = Dot<V, X, T>;
  constexpr int lanes = Lanes<V>::count;
  constexpr int block = rows == 1 ? lanes : lanes / 2;  // rows of w whose sums fit the registers
  V parts[rows][lanes];                                 // of row n of w, the partial sums by lane
  const auto multiply_rows = [&](int first, auto constant) {
    constexpr int n_rows = decltype(constant)::value;
    V part[rows][n_rows] = {};
    const auto accumulate = [&](int64_t k, int count_of_k) {
      V factors[rows];
      for (int r = 0; r < rows; ++r) factors[r] = D::load_x(x[r] + k, count_of_k);
      for (int n = 0; n < n_rows; ++n) {
        const V weights = D::load_w(w + (first + n) * depth + k, count_of_k);
        for (int r = 0; r < rows; ++r) part[r][n] = D::add(part[r][n], factors[r], weights);
      }
    };
    int64_t k = 0;
    for (; k + D::width <= depth; k += D::width) accumulate(k, D::width);
    if (k < depth) accumulate(k, static_cast<int>(depth - k));
    for (int r = 0; r < rows; ++r) {
      for (int n = 0; n < n_rows; ++n) parts[r][first + n] = part[r][n];
    }
  };
  if (count >= lanes) {
    for (int n = 0; n < lanes; n += block) multiply_rows(n, std::integral_constant<int, block>{});
  } else {
    for (int r = 0; r < rows; ++r) {
      for (int n = 0; n < lanes; ++n) parts[r][n] = V{};
    }
    for (int n = 0; n < count; ++n) multiply_rows(n, std::integral_constant<int, 1>{});
  }
  for (int r = 0; r < rows; ++r) sums[r] = horizontal_sums(parts[r]);
}

// to [rows, 4, lanes] = start [rows, 4, lanes] + x times the rows of W [4H, depth] of the units j
// .. of each gate. x: pointers to `rows` rows [depth]. Rows of `start` are start_stride elements
// apart.
template <int rows, class V, class X, class T, class Scalar = typename Lanes<V>::Scalar>
FUSED_LSTM_INLINE void multiply_dot(const X* const* x, int64_t depth, const T* weight, int64_t H,
                                    int64_t j, const Scalar* start, int64_t start_stride,
                                    Scalar* to) {
  constexpr int lanes = Lanes<V>::count;
  const X* row[rows];
  for (int r = 0; r < rows; ++r) row[r] = x[r];
  for (int gate = 0; gate < kTileVectors; ++gate) {
    V sums[rows];
    gemv(weight + (gate * H + j) * depth, depth, H - j, row, sums);
    for (int r = 0; r < rows; ++r) {
      const V from = load<V>(start + r * start_stride + gate * lanes, lanes);
      store<V>(to + (r * kTileVectors + gate) * lanes, from + sums[r], lanes);
    }
  }
}

// c [rows, columns] += a [rows, depth] w [depth, columns], for the columns begin .. end. depth is a
// multiple of 4.
template <class V, class X, class T, class Scalar = typename Lanes<V>::Scalar>
void accumulate_gemv(const X* a, int64_t depth, const T* w, Scalar* c, int64_t columns,
                     int64_t begin, int64_t end, int64_t rows) {
  const auto accumulate = [&](int64_t k, auto constant) {
    constexpr int w_rows = decltype(constant)::value;
    for (int64_t r = 0; r < rows; ++r) {
      Scalar factors[w_rows];
      for (int i = 0; i < w_rows; ++i) factors[i] = load<Scalar>(a + r * depth + k + i, 1);
      for_vectors<V>(begin, end, [&](int64_t j, int count) {
        V sum = load<V>(c + r * columns + j, count);
        for (int i = 0; i < w_rows; ++i) {
          sum += broadcast<V>(factors[i]) * load<V>(w + (k + i) * columns + j, count);
        }
        store<V>(c + r * columns + j, sum, count);
      });
    }
  };
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) accumulate(k, std::integral_constant<int, 8>{});
  if (k < depth) accumulate(k, std::integral_constant<int, 4>{});
}

}  // namespace
}  // namespace fused_lstm::cpu
