// GEMM in registers over packed weights.
//
//   sums [rows, 4 vectors] = start + x [rows, depth] panel [depth, 4 vectors]
//
//             panel row k    | w0      | w1      | w2      | w3      |   4 loads, 4 registers
//     x[0][k], broadcast  x  | sum 0,0 | sum 0,1 | sum 0,2 | sum 0,3 |
//     x[1][k], broadcast  x  | sum 1,0 | sum 1,1 | sum 1,2 | sum 1,3 |   1 FMA each
//       :                    |         |         |         |         |
//
// With rows = FUSED_LSTM_TILE_ROWS the sums fill the register file, through all of depth.
#pragma once

#include "cpu/pack.inl"

namespace fused_lstm::cpu {
namespace {

// to [rows, 4, lanes] = start [rows, 4, lanes] + x times one panel. x: pointers to `rows` rows
// [depth]. Rows of `start` are start_stride elements apart.
template <int rows, class V, class Scalar = typename Lanes<V>::Scalar>
FUSED_LSTM_INLINE void multiply_panel(const Scalar* const* x, int64_t depth, const Scalar* panel,
                                      const Scalar* start, int64_t start_stride, Scalar* to) {
  constexpr int lanes = Lanes<V>::count;
  constexpr int64_t prefetched_rows = 16;  // of the panel, which comes from the L2 cache
  constexpr int line = 64 / sizeof(Scalar);
  constexpr int copies = rows == 1 ? 2 : 1;  // four sums are too few to hide an FMA's latency
  const Scalar* row[rows];
  V sums[copies][rows][kTileVectors] = {};
  for (int r = 0; r < rows; ++r) {
    row[r] = x[r];
    // Opaque: GCC would keep the distances between the rows in registers and step two indices.
    __asm__("" : "+r"(row[r]));
    for (int v = 0; v < kTileVectors; ++v) {
      sums[0][r][v] = load<V>(start + r * start_stride + v * lanes, lanes);
    }
  }
  const auto accumulate = [&](int64_t k, V(&to_sums)[rows][kTileVectors]) {
    const Scalar* from = panel + k * kTileVectors * lanes;
    V weights[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) weights[v] = load<V>(from + v * lanes, lanes);
    for (int n = 0; n < kTileVectors * lanes; n += line) {
      __builtin_prefetch(from + prefetched_rows * kTileVectors * lanes + n);
    }
    for (int r = 0; r < rows; ++r) {
      const V factor = broadcast<V>(row[r][k]);
      for (int v = 0; v < kTileVectors; ++v) to_sums[r][v] += factor * weights[v];
    }
  };
  int64_t k = 0;
  for (const int64_t last = depth - copies; k <= last; k += copies) {
    for (int copy = 0; copy < copies; ++copy) accumulate(k + copy, sums[copy]);
  }
  for (; k < depth; ++k) accumulate(k, sums[0]);
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kTileVectors; ++v) {
      const V sum = copies == 2 ? sums[0][r][v] + sums[copies - 1][r][v] : sums[0][r][v];
      store<V>(to + (r * kTileVectors + v) * lanes, sum, lanes);
    }
  }
}

// 0 .. n in blocks of nearly equal size, each at most `highest` groups of `group`; only the last
// group may be incomplete.
struct Blocks {
  Blocks(int64_t n_, int64_t group_, int64_t highest)
      : n(n_),
        group(group_),
        groups((n + group - 1) / group),
        count((groups + highest - 1) / highest) {}

  // Calls body(first, size) for each block.
  template <class Body>
  FUSED_LSTM_INLINE void for_each(const Body& body) const {
    int64_t first = 0;
    for (int64_t i = 1; i <= count; ++i) {
      const int64_t end = i < count ? groups * i / count * group : n;
      body(first, end - first);
      first = end;
    }
  }

  int64_t n, group, groups, count;
};

// Calls body(std::integral_constant<int, n>), n = 1 .. highest.
template <int highest, class Body>
FUSED_LSTM_INLINE void with_constant(int64_t n, const Body& body) {
  if constexpr (highest > 0) {
    if (n == highest) {
      body(std::integral_constant<int, highest>{});
    } else {
      with_constant<highest - 1>(n, body);
    }
  }
}

// What a thread holds while it runs the GEMMs of these types: the configuration of AMX tiles.
template <class Types>
class TileConfiguration {};

// Tiles of a [rows, depth] times a panel. stage: memory for AMX tiles.
template <class Types>
class PlainTiles {
  using Scalar = typename Types::Accum;

 public:
  static constexpr int64_t group = 1, highest = FUSED_LSTM_TILE_ROWS;
  PlainTiles(const Scalar* a, int64_t depth, Scalar* /*stage*/) : a_(a), depth_(depth) {}
  // to [height, 4, lanes] = the rows row .. row + height times `panel`
  void multiply(int64_t row, int64_t height, const Scalar* panel, Scalar* to) const {
    using V = VectorOfTypes<Types>;
    const Scalar zero[kTileVectors * Lanes<V>::count] = {};
    const Scalar* x[highest];
    for (int64_t r = 0; r < height; ++r) x[r] = a_ + (row + r) * depth_;
    with_constant<highest>(height, [&](auto rows) {
      multiply_panel<decltype(rows)::value, V>(x, depth_, panel, zero, 0, to);
    });
  }

 private:
  const Scalar* a_;
  int64_t depth_;
};

// c [rows, columns] (+)= a [rows, depth] times the plain panels of a weight [depth, columns], for
// the columns begin .. end; a panel starts at `begin`.
template <class Types>
void gemm(const typename Types::Operand* a, int64_t depth, const typename Types::Operand* panels,
          typename Types::Accum* c, int64_t columns, int64_t begin, int64_t end, int64_t rows,
          bool accumulate, bool descending, typename Types::Operand* stage) {
  using V = VectorOfTypes<Types>;
  using Tiles = PlainTiles<Types>;
  constexpr int64_t width = kTileVectors * Lanes<V>::count;
  const int64_t blocks = (end - begin + width - 1) / width;
  Tiles tiles(a, depth, stage);
  const Blocks row_blocks(rows, Tiles::group, Tiles::highest);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = begin + (descending ? blocks - 1 - i : i) * width;
    const int64_t last = first + width < end ? first + width : end;
    row_blocks.for_each([&](int64_t row, int64_t height) {
      alignas(64) typename Types::Accum sums[Tiles::group * Tiles::highest * width];
      tiles.multiply(row, height, panels + first * panel_depth<Types>(depth), sums);
      for (int64_t r = 0; r < height; ++r) {
        typename Types::Accum* const to = c + (row + r) * columns;
        for_vectors<V>(first, last, [&](int64_t j, int count) {
          const V sum = load<V>(sums + r * width + j - first, count);
          store<V>(to + j, accumulate ? load<V>(to + j, count) + sum : sum, count);
        });
      }
    });
  }
}

}  // namespace
}  // namespace fused_lstm::cpu
