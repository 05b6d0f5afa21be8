// Weights in panels, the layout that the GEMMs in registers (gemm.inl) and in AMX tiles (amx.inl)
// read from front to back.
//
//   gate panel p of W [4H, depth]           [depth, 4, lanes]
//
//        k ->                                     lanes     lanes     lanes     lanes
//     i |==========| lanes rows: the        k=0 | i i i i | f f f f | g g g g | o o o o |
//     f |==========| hidden units of p,     k=1 | i i i i | f f f f | g g g g | o o o o |
//     g |==========| of each of the          :  |         |         |         |         |
//     o |==========| four gates
//
//   plain panel p of W [depth, columns], or of its transpose: the same shape; for each k, four
//   neighbouring vectors of columns.
//
// Columns past the last are zero. Panels of bfloat16 operands interleave pairs of k and pad depth
// (bf16.inl).
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fused_lstm::cpu {
namespace {

constexpr int kTileVectors = 4;

template <class Types>
using VectorOfTypes = typename VectorFor<typename Types::Accum>::Type;

template <class Types>
constexpr int64_t lanes_of() {
  return Lanes<VectorOfTypes<Types>>::count;
}

// Whether GEMMs are made in AMX tiles.
#ifdef FUSED_LSTM_AMX
template <class Types>
constexpr bool has_amx_tiles = std::is_same_v<typename Types::Operand, BFloat16> ||
                               std::is_same_v<typename Types::Operand, Int8>;
#else
template <class Types>
constexpr bool has_amx_tiles = false;
#endif

// Elements of depth that lie side by side in a panel: what one instruction multiplies.
template <class Operand>
constexpr int kDepthStep = 1;
template <>
constexpr int kDepthStep<BFloat16> = 2;
template <>
constexpr int kDepthStep<Int8> = 4;

template <class Types>
constexpr bool is_frozen = false;
template <class Operand, class State>
constexpr bool is_frozen<Frozen<Operand, State>> = true;

// Whether a weight can be multiplied as nn.LSTM stores it, in SIMD vectors of its own type.
template <class Types>
constexpr bool reads_weights_in_place =
    std::is_same_v<typename Types::Storage, typename Types::Accum> && !is_frozen<Types>;

// The depth of a panel: a multiple of what a GEMM reads at once.
template <class Types>
constexpr int64_t kDepthUnit =
    has_amx_tiles<Types> ? kAmxDepth * 2 / static_cast<int64_t>(sizeof(typename Types::Operand))
                         : kDepthStep<typename Types::Operand>;
template <class Types>
int64_t panel_depth(int64_t depth) {
  constexpr int64_t unit = kDepthUnit<Types>;
  return (depth + unit - 1) / unit * unit;
}

// Elements of a row of activations that is copied for a GEMM.
template <class Types>
int64_t row_size(int64_t depth) {
  return panel_depth<Types>(depth);
}

// Copies a row of activations [depth], as Storage or State has them, as a GEMM's left factor
// [row_size], padded with zeros.
template <class Types, class From>
void make_operand_row(const From* from, int64_t depth, typename Types::Operand* to) {
  using V = VectorOfTypes<Types>;
  for_vectors<V>(0, depth,
                 [&](int64_t k, int count) { store<V>(to + k, load<V>(from + k, count), count); });
  for (int64_t k = depth; k < row_size<Types>(depth); ++k) to[k] = {};
}

template <class Types>
int64_t panel_count(const Packing<Types>& w) {
  const int64_t width = lanes_of<Types>() * (w.layout == PanelLayout::gates ? 1 : kTileVectors);
  const int64_t columns = w.layout == PanelLayout::gates   ? w.rows / 4
                          : w.layout == PanelLayout::plain ? w.columns
                                                           : w.rows;
  return (columns + width - 1) / width;
}

template <class Types>
int64_t panel_size(const Packing<Types>& w) {
  const int64_t depth = w.layout == PanelLayout::plain ? w.rows : w.columns;
  // Each column of quantised weights also has a scale and a sum (int8.inl).
  const int64_t more = std::is_same_v<Types, FrozenInt8> ? sizeof(float) + sizeof(int32_t) : 0;
  return (panel_depth<Types>(depth) + more) * kTileVectors * lanes_of<Types>();
}

// The rows [first, first + count) of a weight that is packed transposed; they become the columns of
// vector v of a panel and, beyond its lanes, of the vectors after it.
struct RowRange {
  int64_t first, count;
};
template <class Types>
RowRange rows_of_vector(const Packing<Types>& w, int64_t panel, int v) {
  if (w.layout == PanelLayout::gates) {
    const int64_t H = w.rows / 4, unit = panel * lanes_of<Types>();
    return {v * H + unit, H - unit};
  }
  const int64_t first = (panel * kTileVectors + v) * lanes_of<Types>();
  return {first, w.rows - first};
}

// The columns that a row of a plain weight has for one vector, which begins at column `first`.
template <class Types>
int count_columns(const Packing<Types>& w, int64_t first) {
  const int64_t left = w.columns - first;
  return static_cast<int>(left < 0 ? 0 : left < lanes_of<Types>() ? left : lanes_of<Types>());
}

// One vector of each row of a panel, from `count` rows [depth] of a weight.
template <class V, class T>
void pack_transposed(const T* from, int64_t depth, int64_t count, typename Lanes<V>::Scalar* to) {
  constexpr int lanes = Lanes<V>::count;
  for_vectors<V>(0, depth, [&](int64_t k, int part) {
    V square[lanes];
    for (int n = 0; n < lanes; ++n) {
      square[n] = n < count ? load<V>(from + n * depth + k, part) : V{};
    }
    transpose(square);
    for (int n = 0; n < part; ++n) {
      store<V>(to + (k + n) * kTileVectors * lanes, square[n], lanes);
    }
  });
}

template <class Types>
void pack(const Packing<Types>& w, int64_t panel, typename Types::Operand* to) {
  using V = VectorOfTypes<Types>;
  constexpr int64_t lanes = lanes_of<Types>();
  to += panel * panel_size(w);
  if (w.layout == PanelLayout::plain) {
    const int64_t first = panel * kTileVectors * lanes;
    for (int64_t k = 0; k < w.rows; ++k) {
      for (int v = 0; v < kTileVectors; ++v, to += lanes) {
        const int64_t column = first + v * lanes;
        store<V>(to, load<V>(w.data + k * w.columns + column, count_columns(w, column)), lanes);
      }
    }
  } else {
    for (int v = 0; v < kTileVectors; ++v, to += lanes) {
      const RowRange rows = rows_of_vector(w, panel, v);
      pack_transposed<V>(w.data + rows.first * w.columns, w.columns, rows.count, to);
    }
  }
}

}  // namespace
}  // namespace fused_lstm::cpu
