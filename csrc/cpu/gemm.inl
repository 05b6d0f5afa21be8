// GEMM in registers over packed weights.
//
//   sums [rows, 4 vectors] = start + x [rows, depth] panel [depth, 4 vectors]
//
//             panel row k    | w0      | w1      | w2      | w3      |   4 loads, 4 registers
//     x[0][k], broadcast  x  | sum 0,0 | sum 0,1 | sum 0,2 | sum 0,3 |
//     x[1][k], broadcast  x  | sum 1,0 | sum 1,1 | sum 1,2 | sum 1,3 |   1 FMA each
//       :                    |         |         |         |         |
//
// With rows = FUSED_LSTM_TILE_ROWS the sums fill the register file, through all of depth. A panel
// of fewer vectors has tiles of more rows.
#pragma once

#include "cpu/pack.inl"

namespace fused_lstm::cpu {
namespace {

// Rows of a tile of so many vectors, whose sums fill the registers.
template <int vectors>
constexpr int kTileRows = vectors == 4   ? FUSED_LSTM_TILE_ROWS
                          : vectors == 3 ? FUSED_LSTM_TILE_ROWS / 3 * 4
                          : vectors == 2 ? 2 * FUSED_LSTM_TILE_ROWS
                                         : 2 * FUSED_LSTM_TILE_ROWS + 2;

// How a tile multiplies operands of this type: `step` elements of depth at a time.
template <class V, class Operand>
struct Multiply {
  static constexpr int step = 1;
  static FUSED_LSTM_INLINE V load_weights(const Operand* from) {
    return load<V>(from, Lanes<V>::count);
  }
  static FUSED_LSTM_INLINE V load_factor(const Operand* from) { return broadcast<V>(*from); }
  static FUSED_LSTM_INLINE V load_last_factor(const Operand* from) { return load_factor(from); }
  static FUSED_LSTM_INLINE V add(V sum, V factor, V weights) { return sum + factor * weights; }
};

#ifndef FUSED_LSTM_BF16_OPERANDS
// Pairs of bfloat16 in the lanes of a vector, widened: the first is the low half of a lane.
template <>
struct Multiply<Floats, BFloat16> {
  static constexpr int step = kDepthStep<BFloat16>;
  static FUSED_LSTM_INLINE Floats load_weights(const BFloat16* from) {
    return copy_in<Floats>(from, step * Lanes<Floats>::count);
  }
  static FUSED_LSTM_INLINE Floats load_factor(const BFloat16* from) {
    int32_t pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return bits_as<Floats>(broadcast<Ints>(pair));
  }
  static FUSED_LSTM_INLINE Floats load_last_factor(const BFloat16* from) {
    return bits_as<Floats>(broadcast<Ints>(from->bits));
  }
  static FUSED_LSTM_INLINE Floats add(Floats sum, Floats factor, Floats weights) {
    return sum + first(factor) * first(weights) + second(factor) * second(weights);
  }

 private:
  static FUSED_LSTM_INLINE Floats first(Floats pairs) {
    return from_bfloat16<Floats>(bits_as<Ints>(pairs));
  }
  static FUSED_LSTM_INLINE Floats second(Floats pairs) {
    return bits_as<Floats>(bits_as<Ints>(pairs) & ~0xffff);
  }
};
#endif

// sums [rows, vectors] += x [rows, depth] panel [depth, vectors]. x: a pointer to each row, whose
// elements are x_step apart; rows of the panel are panel_step elements apart.
template <bool prefetches, int rows, int vectors, class V, class Operand>
FUSED_LSTM_INLINE void multiply_tile(const Operand* const (&x)[rows], int64_t x_step, int64_t depth,
                                     const Operand* panel, int64_t panel_step,
                                     V (&sums)[rows][vectors]) {
  using M = Multiply<V, Operand>;
  constexpr int width = Lanes<V>::count * M::step;  // elements of a panel's vector
  constexpr int64_t prefetched_rows = 16;           // of the panel, which comes from the L2 cache
  constexpr int line = 64 / sizeof(Operand);
  constexpr int copies = rows * vectors < 8 ? 2 : 1;  // few sums do not hide an FMA's latency
  const Operand* row[rows];
  for (int r = 0; r < rows; ++r) {
    row[r] = x[r];
    // Opaque: GCC would keep the distances between the rows in registers and step two indices.
    __asm__("" : "+r"(row[r]));
  }
  V second[rows][vectors] = {};
  const auto accumulate = [&](int64_t k, V(&to_sums)[rows][vectors], bool last = false) {
    const Operand* const from = panel + k * panel_step;
    V weights[vectors];
    for (int v = 0; v < vectors; ++v) weights[v] = M::load_weights(from + v * width);
    if constexpr (prefetches) {
      for (int n = 0; n < vectors * width; n += line) {
        __builtin_prefetch(from + prefetched_rows * panel_step + n);
      }
    }
    for (int r = 0; r < rows; ++r) {
      const Operand* const at = row[r] + k * x_step;
      const V factor = last ? M::load_last_factor(at) : M::load_factor(at);
      for (int v = 0; v < vectors; ++v) to_sums[r][v] = M::add(to_sums[r][v], factor, weights[v]);
    }
  };
  int64_t k = 0;
  if constexpr (copies == 2) {
    for (; k + 2 * M::step <= depth; k += 2 * M::step) {
      accumulate(k, sums);
      accumulate(k + M::step, second);
    }
  }
  for (; k + M::step <= depth; k += M::step) accumulate(k, sums);
  if constexpr (M::step > 1) {
    if (k < depth) accumulate(k, sums, /*last=*/true);
  }
  if constexpr (copies == 2) {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < vectors; ++v) sums[r][v] += second[r][v];
    }
  }
}

// to [rows, 4, lanes] = start [rows, 4, lanes] + x times one panel. x: pointers to `rows` rows
// [depth]. Rows of `start` are start_stride elements apart.
template <int rows, class V, class Operand, class Scalar = typename Lanes<V>::Scalar>
FUSED_LSTM_INLINE void multiply_panel(const Operand* const* x, int64_t depth, const Operand* panel,
                                      const Scalar* start, int64_t start_stride, Scalar* to) {
  constexpr int lanes = Lanes<V>::count;
  const Operand* row[rows];
  V sums[rows][kTileVectors];
  for (int r = 0; r < rows; ++r) {
    row[r] = x[r];
    for (int v = 0; v < kTileVectors; ++v) {
      sums[r][v] = load<V>(start + r * start_stride + v * lanes, lanes);
    }
  }
  multiply_tile<true>(row, 1, depth, panel, kTileVectors * lanes, sums);
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kTileVectors; ++v) {
      store<V>(to + (r * kTileVectors + v) * lanes, sums[r][v], lanes);
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
template <bool amx_tiles>
class TileConfiguration {};

// A matrix [rows, depth] as the left factor of a GEMM.
template <class Operand>
struct LeftFactor {
  const Operand* data;
  int64_t row_stride, depth_stride;  // elements
};

// c [rows, columns] (+)= a [rows, depth] times a panel of `vectors` vectors, of which the last has
// `count` columns. One copy for all callers.
template <int rows, int vectors, class V, class Operand, class Scalar = typename Lanes<V>::Scalar>
__attribute__((noinline)) void gemm_tile(const LeftFactor<Operand>& a, int64_t depth,
                                         const Operand* panel, int64_t panel_step, Scalar* c,
                                         int64_t c_stride, int count, bool accumulate) {
  constexpr int lanes = Lanes<V>::count;
  const Operand* row[rows];
  V sums[rows][vectors] = {};
  for (int r = 0; r < rows; ++r) {
    row[r] = a.data + r * a.row_stride;
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(c + r * c_stride + v * lanes);
  }
  multiply_tile<false>(row, a.depth_stride, depth, panel, panel_step, sums);
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) {
      const int columns = v + 1 < vectors ? lanes : count;
      Scalar* const to = c + r * c_stride + v * lanes;
      store<V>(to, accumulate ? load<V>(to, columns) + sums[r][v] : sums[r][v], columns);
    }
  }
}

// c [rows, columns] (+)= a [rows, depth] times one panel of at most 4 vectors.
template <class V, class Operand, class Scalar = typename Lanes<V>::Scalar>
void gemm_panel(const LeftFactor<Operand>& a, int64_t rows, int64_t depth, const Operand* panel,
                int64_t panel_step, Scalar* c, int64_t c_stride, int64_t columns, bool accumulate) {
  constexpr int lanes = Lanes<V>::count;
  with_constant<kTileVectors>((columns + lanes - 1) / lanes, [&](auto constant) {
    constexpr int vectors = decltype(constant)::value;
    const int count = static_cast<int>(columns - (vectors - 1) * lanes);
    Blocks(rows, 1, kTileRows<vectors>).for_each([&](int64_t row, int64_t height) {
      with_constant<kTileRows<vectors>>(height, [&](auto tile_rows) {
        gemm_tile<decltype(tile_rows)::value, vectors, V>(
            LeftFactor<Operand>{a.data + row * a.row_stride, a.row_stride, a.depth_stride}, depth,
            panel, panel_step, c + row * c_stride, c_stride, count, accumulate);
      });
    });
  });
}

// Depth of a GEMM between two reads of c: a panel's part stays in the nearest caches while all rows
// pass it.
constexpr int64_t kDepthBlock = 512;

// to [depth, 4, lanes] = the columns first .. last of w [depth, columns], padded with zeros.
template <class V, class Scalar = typename Lanes<V>::Scalar>
void pack_columns(const Scalar* w, int64_t depth, int64_t columns, int64_t first, int64_t last,
                  Scalar* to) {
  constexpr int lanes = Lanes<V>::count;
  for (int64_t k = 0; k < depth; ++k, to += kTileVectors * lanes) {
    for_vectors<V>(first, last, [&](int64_t j, int count) {
      store<V>(to + j - first, load<V>(w + k * columns + j, count), lanes);
    });
  }
}

// c [rows, columns] (+)= a [rows, depth] times a weight [depth, columns], for the columns begin ..
// end; a panel starts at `begin`. Without plain panels (Gemm::unpacked) the weight is read as it is
// stored, but for a panel that ends within a vector, which is packed. stage: [kDepthBlock, 4,
// lanes] for that.
template <class Types>
void gemm(const typename Types::Operand* a, int64_t depth, const Weight<Types>& weight,
          typename Types::Accum* c, int64_t columns, int64_t begin, int64_t end, int64_t rows,
          bool accumulate, bool descending, typename Types::Operand* stage) {
  using V = VectorOfTypes<Types>;
  using Operand = typename Types::Operand;
  constexpr int64_t lanes = lanes_of<Types>(), width = kTileVectors * lanes;
  constexpr int step = Multiply<V, Operand>::step;
  const int64_t panels = (end - begin + width - 1) / width;
  Blocks(depth, step, kDepthBlock / step).for_each([&](int64_t k, int64_t block) {
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t first = begin + (descending ? panels - 1 - i : i) * width;
      const int64_t last = first + width < end ? first + width : end;
      const Operand* panel = weight.panels + first * panel_depth<Types>(depth) + k * width;
      int64_t panel_step = width;
      if constexpr (reads_weights_in_place<Types>) {
        if (!weight.panels && (last - first) % lanes == 0) {
          panel = weight.data + k * columns + first;
          panel_step = columns;
        } else if (!weight.panels) {
          pack_columns<V>(weight.data + k * columns, block, columns, first, last, stage);
          panel = stage;
        }
      }
      gemm_panel<V>(LeftFactor<Operand>{a + k, depth, 1}, rows, block, panel, panel_step, c + first,
                    columns, last - first, accumulate || k > 0);
    }
  });
}

}  // namespace
}  // namespace fused_lstm::cpu
