// The GEMMs over all N rows that give the gradients of the input and of the weights.
//
//   dL/dW [M, columns] = grad^T [M, N] x [N, columns]      W_ih and W_hh at once: x, then h_prev
//
//   for each block of N (kDepthRows)
//     x and h_prev are packed into panels [block of N, up to 4 vectors]
//     for each block of M (kGradRows)
//       grad [block of N, block of M] is copied side by side, and added up to dL/dbias
//       for each panel, for each tile of rows
//         dL/dW tile += grad tile^T panel
//
//        grad block                       panel
//          | g g g | g g g |                | x x x x |  k = 0
//          | g g g | g g g |  columns of    | x x x x |      1     a tile's row is a column of the
//          | g g g | g g g |  a tile        | x x x x |      2     block: its
//          | g g g | g g g |                |         |         strides are in LeftFactor
#pragma once

#include "cpu/gemm.inl"
#include "cpu/gemv.inl"

namespace fused_lstm::cpu {
namespace {

constexpr int64_t kDepthRows = 384;  // of N
constexpr int64_t kGradRows = 192;   // of M

// Rows [begin, end) of dL/dx [N, D] (+)= grad_preactivations [N, 4H] W_ih [4H, D].
template <class Types>
void input_gradient(const InputGradientParams<Types>& p, int64_t begin, int64_t end,
                    typename Types::Operand* stage) {
  constexpr int64_t kRowBlock = 96;  // whose part of grad_preactivations stays in the L2 cache
  Blocks(end - begin, 1, kRowBlock).for_each([&](int64_t row, int64_t rows) {
    const auto* const grads = p.grad_preactivations + (begin + row) * p.depth;
    auto* const to = p.grad_input + (begin + row) * p.input_size;
    if (p.gemm == Gemm::dot) {
      if (!p.accumulate) __builtin_memset(to, 0, rows * p.input_size * sizeof(*to));
      accumulate_gemv<VectorOfTypes<Types>>(grads, p.depth, p.weight_ih.data, to, p.input_size, 0,
                                            p.input_size, rows);
    } else {
      gemm<Types>(grads, p.depth, p.weight_ih, to, p.input_size, 0, p.input_size, rows,
                  p.accumulate, /*descending=*/false, stage);
    }
  });
}

// Panels of `columns` columns: full ones, then one of fewer vectors.
template <class V>
int64_t padded_columns(int64_t columns) {
  constexpr int64_t lanes = Lanes<V>::count;
  return (columns + lanes - 1) / lanes * lanes;
}

// Elements of the scratch memory of weight_gradient.
template <class Types>
int64_t weight_gradient_scratch_size(const WeightGradientParams<Types>& p) {
  using V = VectorOfTypes<Types>;
  int64_t columns = kGradRows < p.grad_columns ? kGradRows : p.grad_columns;
  for (int i = 0; i < p.factors; ++i) columns += padded_columns<V>(p.right[i].columns);
  return (kDepthRows < p.rows ? kDepthRows : p.rows) * columns;
}

// Copies a block [depth, columns] with the rows `from_stride` apart to rows `to_stride` apart.
// sums [columns] (+)= its rows, unless null.
template <class V, class Scalar = typename Lanes<V>::Scalar>
void copy_and_sum(const Scalar* from, int64_t from_stride, int64_t depth, int64_t columns,
                  Scalar* to, int64_t to_stride, Scalar* sums, bool accumulate) {
  constexpr int lanes = Lanes<V>::count;
  for (int64_t j = 0; j < columns; j += kTileVectors * lanes) {
    const int64_t left_vectors = (columns - j + lanes - 1) / lanes;
    with_constant<kTileVectors>(
        left_vectors < kTileVectors ? left_vectors : kTileVectors, [&](auto constant) {
          constexpr int vectors = decltype(constant)::value;
          const int64_t left = columns - j - (vectors - 1) * lanes;
          const int last = left < lanes ? static_cast<int>(left) : lanes;
          const auto count = [&](int v) { return v + 1 < vectors ? lanes : last; };
          V sum[vectors] = {};
          for (int64_t k = 0; k < depth; ++k) {
            for (int v = 0; v < vectors; ++v) {
              const V x = load<V>(from + k * from_stride + j + v * lanes, count(v));
              store<V>(to + k * to_stride + j + v * lanes, x, count(v));
              sum[v] += x;
            }
          }
          for (int v = 0; sums && v < vectors; ++v) {
            Scalar* const s = sums + j + v * lanes;
            store<V>(s, accumulate ? load<V>(s, count(v)) + sum[v] : sum[v], count(v));
          }
        });
  }
}

// Rows [begin, end) of the gradients of the weights, which have M rows in all.
template <class Types>
void weight_gradient(const WeightGradientParams<Types>& p, int64_t begin, int64_t end,
                     typename Types::Accum* scratch) {
  using Scalar = typename Types::Accum;
  using V = VectorOfTypes<Types>;
  constexpr int64_t lanes = Lanes<V>::count, width = kTileVectors * lanes;
  const int64_t stride = kGradRows < p.grad_columns ? kGradRows : p.grad_columns;
  Scalar* const grad_block = scratch;  // [kDepthRows, stride] at most
  Scalar* const panels = scratch + (kDepthRows < p.rows ? kDepthRows : p.rows) * stride;
  const auto for_panels = [&](const RightFactor<Scalar>& right, const auto& body) {
    for (int64_t j = 0; j < right.columns; j += width) {
      const int64_t columns = right.columns - j < width ? right.columns - j : width;
      body(j, columns, padded_columns<V>(columns));
    }
  };
  Blocks(p.rows, 1, kDepthRows).for_each([&](int64_t k, int64_t depth) {
    Scalar* to = panels;
    for (int i = 0; i < p.factors; ++i) {
      const RightFactor<Scalar>& right = p.right[i];
      for_panels(right, [&](int64_t j, int64_t columns, int64_t padded) {
        for (int64_t n = k; n < k + depth; ++n, to += padded) {
          const Scalar* const from = right.row(n) + j;
          for_vectors<V>(0, columns, [&](int64_t column, int count) {
            store<V>(to + column, load<V>(from + column, count), lanes);
          });
        }
      });
    }
    Blocks(end - begin, kTileRows<kTileVectors>, kGradRows / kTileRows<kTileVectors>)
        .for_each([&](int64_t first, int64_t rows) {
          const int64_t m = begin + first;
          copy_and_sum<V>(p.grad + k * p.grad_columns + m, p.grad_columns, depth, rows, grad_block,
                          stride, p.grad_bias ? p.grad_bias + m : nullptr, k > 0);
          const Scalar* panel = panels;
          for (int i = 0; i < p.factors; ++i) {
            const RightFactor<Scalar>& right = p.right[i];
            for_panels(right, [&](int64_t j, int64_t columns, int64_t padded) {
              gemm_panel<V>(LeftFactor<Scalar>{grad_block, 1, stride}, rows, depth, panel, padded,
                            right.grad + m * right.columns + j, right.columns, columns,
                            /*accumulate=*/k > 0);
              panel += depth * padded;
            });
          }
        });
  });
}

}  // namespace
}  // namespace fused_lstm::cpu
