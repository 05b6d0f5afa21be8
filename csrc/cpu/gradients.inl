// The GEMMs over all N rows that give the gradients of the input and of the weights.
//
//   dL/dW [M, columns] = grad^T [M, N] x [N, columns]      W_ih and W_hh at once: x, then h_prev
//
//   for each block of N (kDepthRows)
//     x and h_prev are packed into panels [block of N, up to 4 vectors]
//     for each block of M (kGradRows)
//       grad [block of N, block of M] is copied side by side, and added up to dL/dbias
//       for each panel, which stays in the L1 cache, for each tile of rows
//         dL/dW tile += grad tile^T panel
//
//        grad block                       panel
//          | g g g | g g g |                | x x x x |  k = 0
//          | g g g | g g g |  columns of    | x x x x |      1     a tile's row is a column of the
//          | g g g | g g g |  a tile        | x x x x |      2     block: LeftFactor has both
//          strides
#pragma once

#include "cpu/gemm.inl"
#include "cpu/gemv.inl"

namespace fused_lstm::cpu {
namespace {

constexpr int64_t kDepthRows = 128;  // of N
constexpr int64_t kGradRows = 96;    // of M

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
  int64_t columns = kGradRows;
  for (int i = 0; i < p.factors; ++i) columns += padded_columns<V>(p.right[i].columns);
  return kDepthRows * columns;
}

// Rows [begin, end) of the gradients of the weights, which have M rows in all.
template <class Types>
void weight_gradient(const WeightGradientParams<Types>& p, int64_t begin, int64_t end,
                     typename Types::Accum* scratch) {
  using Scalar = typename Types::Accum;
  using V = VectorOfTypes<Types>;
  constexpr int64_t lanes = Lanes<V>::count, width = kTileVectors * lanes;
  Scalar* const grad_block = scratch;  // [kDepthRows, kGradRows]
  Scalar* const panels = scratch + kDepthRows * kGradRows;
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
          for_vectors<V>(0, rows, [&](int64_t column, int count) {
            V sum = {};
            const Scalar* from = p.grad + k * p.grad_columns + m + column;
            for (int64_t n = 0; n < depth; ++n, from += p.grad_columns) {
              const V grad = load<V>(from, count);
              store<V>(grad_block + n * kGradRows + column, grad, count);
              sum += grad;
            }
            if (p.grad_bias) {
              Scalar* const bias = p.grad_bias + m + column;
              store<V>(bias, k > 0 ? load<V>(bias, count) + sum : sum, count);
            }
          });
          const Scalar* panel = panels;
          for (int i = 0; i < p.factors; ++i) {
            const RightFactor<Scalar>& right = p.right[i];
            for_panels(right, [&](int64_t j, int64_t columns, int64_t padded) {
              gemm_panel<V>({grad_block, 1, kGradRows}, rows, depth, panel, padded,
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
