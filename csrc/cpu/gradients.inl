// The GEMMs over all N rows that give the gradients of the input and of the weights.
//
//   dL/dW [M, columns] = grad^T [M, N] x [N, columns]      W_ih and W_hh at once: x, then h_prev
//
//   for each block of N (block_rows)
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

constexpr int64_t kGradRows = 192;  // of M
constexpr int kOuterProducts = 2;

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

template <class Types>
int64_t padded_columns(int64_t columns) {
  constexpr int64_t lanes = lanes_of<Types>();
  return (columns + lanes - 1) / lanes * lanes;
}

// The sizes of what weight_gradient packs at most, in elements.
template <class Types>
struct GradientScratch {
  explicit GradientScratch(const WeightGradientParams<Types>& p)
      : stride(kGradRows < p.grad_columns ? kGradRows : p.grad_columns) {
    const int64_t rows = p.block_rows < p.rows ? p.block_rows : p.rows;
    const int64_t depth = panel_depth<Types>(rows);
    block = depth * stride;
    panels = 0;
    for (int i = 0; i < p.factors; ++i) {
      panels += depth * padded_columns<Types>(p.right[i].columns);
    }
  }

  int64_t stride;         // columns of the block of grad
  int64_t block, panels;  // [panel_depth, stride]; of all factors
};

template <class Types>
int64_t weight_gradient_scratch_size(const WeightGradientParams<Types>& p) {
  const GradientScratch<Types> scratch(p);
  return scratch.block + scratch.panels;
}

// The columns j .. j + columns of the rows k .. k + depth of a right factor as a panel.
template <class Types>
void pack_right(const RightFactor<Types>& right, int64_t k, int64_t depth, int64_t j,
                int64_t columns, typename Types::Operand* to) {
  using V = VectorOfTypes<Types>;
  const int64_t width = padded_columns<Types>(columns);
  for (int64_t n = 0; n < depth; ++n, to += width) {
    const auto* const from = right.row(k + n) + j;
    for_vectors<V>(0, columns, [&](int64_t column, int count) {
      store<V>(to + column, load<V>(from + column, count), Lanes<V>::count);
    });
  }
}

// Copies a block [depth, columns] of a matrix with rows `from_stride` apart to one with rows
// `to_stride` apart. sums [columns] (+)= its rows, unless null.
template <class Types>
void copy_and_sum(const typename Types::Operand* from, int64_t from_stride, int64_t depth,
                  int64_t columns, typename Types::Operand* to, int64_t to_stride,
                  typename Types::Accum* sums, bool accumulate) {
  using V = VectorOfTypes<Types>;
  constexpr int lanes = Lanes<V>::count;
  for (int64_t j = 0; j < columns; j += kTileVectors * lanes) {
    const int64_t left = (columns - j + lanes - 1) / lanes;
    with_constant<kTileVectors>(left < kTileVectors ? left : kTileVectors, [&](auto constant) {
      constexpr int vectors = decltype(constant)::value;
      const int64_t rest = columns - j - (vectors - 1) * lanes;
      const int last = rest < lanes ? static_cast<int>(rest) : lanes;
      V sum[vectors] = {};
      for (int64_t k = 0; k < depth; ++k) {
        for (int v = 0; v < vectors; ++v) {
          const int count = v + 1 < vectors ? lanes : last;
          const V x = load<V>(from + k * from_stride + j + v * lanes, count);
          store<V>(to + k * to_stride + j + v * lanes, x, count);
          sum[v] += x;
        }
      }
      for (int v = 0; sums && v < vectors; ++v) {
        const int count = v + 1 < vectors ? lanes : last;
        auto* const s = sums + j + v * lanes;
        store<V>(s, accumulate ? load<V>(s, count) + sum[v] : sum[v], count);
      }
    });
  }
}

// The same for so few rows of N that packing them would cost more: a sum of outer products.
template <class Types>
void add_outer_products(const WeightGradientParams<Types>& p, int64_t begin, int64_t end) {
  using V = VectorOfTypes<Types>;
  using Scalar = typename Types::Accum;
  with_constant<kOuterProducts>(p.rows, [&](auto constant) {
    constexpr int rows = decltype(constant)::value;
    const auto grad = [&](int n, int64_t m) {
      return load<Scalar>(p.grad + n * p.grad_columns + m, 1);
    };
    for (int64_t m = begin; p.grad_bias && m < end; ++m) {
      Scalar sum = 0;
      for (int n = 0; n < rows; ++n) sum += grad(n, m);
      p.grad_bias[m] = sum;
    }
    for (int i = 0; i < p.factors; ++i) {
      const typename Types::Operand* x[rows];
      for (int n = 0; n < rows; ++n) x[n] = p.right[i].row(n);
      const int64_t columns = p.right[i].columns;
      Scalar* to = p.right[i].grad + begin * columns;
      for (int64_t m = begin; m < end; ++m, to += columns) {
        V factors[rows];
        for (int n = 0; n < rows; ++n) factors[n] = broadcast<V>(grad(n, m));
        for_vectors<V>(0, columns, [&](int64_t j, int count) {
          V products = {};
          for (int n = 0; n < rows; ++n) products += factors[n] * load<V>(x[n] + j, count);
          store<V>(to + j, products, count);
        });
      }
    }
  });
}

// Rows [begin, end) of the gradients of the weights, which have M rows in all.
template <class Types>
void weight_gradient(const WeightGradientParams<Types>& p, int64_t begin, int64_t end,
                     typename Types::Operand* scratch) {
  using V = VectorOfTypes<Types>;
  using Operand = typename Types::Operand;
  constexpr int step = Multiply<V, Operand>::step;
  constexpr int64_t width = kTileVectors * lanes_of<Types>();
  if (p.rows <= kOuterProducts) return add_outer_products(p, begin, end);
  const GradientScratch<Types> sizes(p);
  Operand* const block = scratch;
  Operand* const panels = scratch + sizes.block;
  // Calls body(factor, first column, columns, panel) for each panel of `depth` rows.
  const auto for_panels = [&](int64_t depth, const auto& body) {
    Operand* panel = panels;
    for (int i = 0; i < p.factors; ++i) {
      for (int64_t j = 0; j < p.right[i].columns; j += width) {
        const int64_t left = p.right[i].columns - j, columns = left < width ? left : width;
        body(p.right[i], j, columns, panel);
        panel += panel_depth<Types>(depth) * padded_columns<Types>(columns);
      }
    }
  };
  Blocks(p.rows, step, p.block_rows / step).for_each([&](int64_t k, int64_t depth) {
    for_panels(depth, [&](const RightFactor<Types>& right, int64_t j, int64_t columns,
                          Operand* panel) { pack_right(right, k, depth, j, columns, panel); });
    Blocks(end - begin, kTileRows<kTileVectors>, kGradRows / kTileRows<kTileVectors>)
        .for_each([&](int64_t first, int64_t rows) {
          const int64_t m = begin + first;
          copy_and_sum<Types>(p.grad + k * p.grad_columns + m, p.grad_columns, depth, rows, block,
                              sizes.stride, p.grad_bias ? p.grad_bias + m : nullptr, k > 0);
          for_panels(depth, [&](const RightFactor<Types>& right, int64_t j, int64_t columns,
                                const Operand* panel) {
            gemm_panel<V>(LeftFactor<Operand>{block, step, sizes.stride}, rows, depth, panel,
                          padded_columns<Types>(columns), right.grad + m * right.columns + j,
                          right.columns, columns, /*accumulate=*/k > 0);
          });
        });
  });
}

}  // namespace
}  // namespace fused_lstm::cpu
