// The GEMM of the four gates with one weight W [4H, depth], by each strategy of plan/kernel.h:
//
//   preactivations [rows, 4, lanes] of a block of `lanes` units = start + x [rows, depth] W^T
//
//   strategy        rows of a tile          x is read            W is read
//   dot             3                       by row pointer       as nn.LSTM stores it
//   packed_ahead    FUSED_LSTM_TILE_ROWS    by row pointer       from a panel of a packed weight
//   packed_on_use   likewise                likewise             from a panel packed for the block
//     both in AMX   16                      by 16 strided rows   likewise
//   transposed      4 vectors               transposed           as nn.LSTM stores it
#pragma once

#ifdef FUSED_LSTM_BF16_OPERANDS
#include "cpu/bf16.inl"
#endif
#include "cpu/gemm.inl"
#include "cpu/gemv.inl"
#include "cpu/int8.inl"
#ifdef FUSED_LSTM_AMX
#include "cpu/amx.inl"
#endif
#include "cpu/transposed.inl"

namespace fused_lstm::cpu {
namespace {

constexpr int kDotRows = 3;  // whose sums fit the registers in gemv

template <class Types>
struct GateGemm {
  using Operand = typename Types::Operand;

  Gemm strategy;
  Weight<Types> weight;       // [4H, depth]
  int64_t hidden_size;        // H
  int64_t depth;              // D or P
  const Operand* const* x;    // [rows] pointers to [depth]
  int64_t x_stride;           // elements from row to row, for AMX
  Blocks tiles;               // of rows
  Operand* panel;             // [panel_depth, 4, lanes] for packed_on_use
  const Operand* transposed;  // [ceil(rows / lanes), depth, lanes] x, where strategy is transposed
};

// The preactivations of the rows row .. row + height and the units j ..
template <class Types>
struct GateTile {
  const GateGemm<Types>& gemm;
  const typename Types::Operand* panel;  // of these units; null without packing
  int64_t j, row, height;
};

// Rows of memory that the tiles of `rows` rows may touch.
template <class Types>
constexpr int64_t touched_rows(int64_t rows) {
  return has_amx_tiles<Types> ? rows + kAmxRows - 1 : rows;
}

// Rows of a tile, at most.
template <class Types>
constexpr int64_t kMaxTileRows = kTileVectors * lanes_of<Types>();

// The tiles of `rows` rows, for a strategy.
template <class Types>
Blocks tiles_of(Gemm strategy, int64_t rows) {
  if (strategy == Gemm::dot) return {rows, 1, kDotRows};
  if (strategy == Gemm::transposed) return {rows, kMaxTileRows<Types>, 1};
  if (has_amx_tiles<Types>) return {rows, kAmxRows, 1};
  return {rows, 1, FUSED_LSTM_TILE_ROWS};
}

// Calls body(GateTile) for the tiles of all rows, for the units j .. of one block.
template <class Types, class Body>
FUSED_LSTM_INLINE void for_gate_tiles(const GateGemm<Types>& g, int64_t j, const Body& body) {
  const typename Types::Operand* panel = nullptr;
  if (g.strategy == Gemm::packed_ahead || g.strategy == Gemm::packed_on_use) {
    const Packing<Types> packing = {g.weight.data, 4 * g.hidden_size, g.depth, PanelLayout::gates};
    const int64_t index = j / lanes_of<Types>(), offset = index * panel_size(packing);
    if constexpr (!is_frozen<Types>) {
      if (!g.weight.panels) pack(packing, index, g.panel - offset);
    }
    panel = g.weight.panels ? g.weight.panels + offset : g.panel;
  }
  g.tiles.for_each(
      [&](int64_t row, int64_t height) { body(GateTile<Types>{g, panel, j, row, height}); });
}

// to [height, 4, lanes] = start + x [height, depth] times one panel. x: a pointer to each row; in
// AMX tiles they are x_stride apart, and `to` has touched_rows(height) rows.
template <class Types>
FUSED_LSTM_INLINE void multiply_by_panel(const typename Types::Operand* const* x, int64_t x_stride,
                                         int64_t height, int64_t depth,
                                         const typename Types::Operand* panel,
                                         const typename Types::Accum* start, int64_t start_stride,
                                         typename Types::Accum* to) {
  if constexpr (std::is_same_v<Types, FrozenInt8> && has_amx_tiles<Types>) {
    multiply_int8_amx(x, x_stride, height, depth, panel, start, start_stride, to);
  } else if constexpr (has_amx_tiles<Types>) {
    multiply_amx(x[0], x_stride, panel_depth<Types>(depth), panel, start, start_stride, to);
  } else {
    with_constant<FUSED_LSTM_TILE_ROWS>(height, [&](auto constant) {
      constexpr int rows = decltype(constant)::value;
      if constexpr (std::is_same_v<Types, FrozenInt8>) {
        multiply_panel_int8<rows>(x, depth, panel, start, start_stride, to);
      } else {
        multiply_panel<rows, VectorOfTypes<Types>>(x, depth, panel, start, start_stride, to);
      }
    });
  }
}

// to [height, 4, lanes] = start + x W^T for one tile. Rows of `start` [4, lanes] are start_stride
// elements apart; `to` has touched_rows(height) rows. Inlined into both callers: out of line,
// handing a tile over in memory costs 2 to 4 % of an inference call.
template <class Types>
FUSED_LSTM_INLINE void multiply_gates(const GateTile<Types>& tile,
                                      const typename Types::Accum* start, int64_t start_stride,
                                      typename Types::Accum* to) {
  using V = VectorOfTypes<Types>;
  const GateGemm<Types>& g = tile.gemm;
  const auto* const x = g.x + tile.row;
  if constexpr (!is_frozen<Types>) {
    if (g.strategy == Gemm::dot) {
      return with_constant<kDotRows>(tile.height, [&](auto height) {
        multiply_dot<decltype(height)::value, V>(x, g.depth, g.weight.data, g.hidden_size, tile.j,
                                                 start, start_stride, to);
      });
    }
  }
  if constexpr (reads_weights_in_place<Types>) {
    if (g.strategy == Gemm::transposed) {
      return multiply_transposed_tile<V>(g.transposed + tile.row * g.depth, tile.height,
                                         g.weight.data, g.depth, g.hidden_size, tile.j, start,
                                         start_stride, to);
    }
  }
  multiply_by_panel<Types>(x, g.x_stride, tile.height, g.depth, tile.panel, start, start_stride,
                           to);
}

}  // namespace
}  // namespace fused_lstm::cpu
