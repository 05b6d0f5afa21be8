// The CPU kernels, written once. Each kernels_*.cpp includes this file under its own instruction
// set with FUSED_LSTM_VECTOR_BYTES, FUSED_LSTM_TILE_ROWS and FUSED_LSTM_TABLE set.

#include "kernels.h"
#include "vector.h"

namespace fused_lstm {
namespace cpu {
namespace {

constexpr int tile_vectors = 4;

// sums [rows, 4 vectors] += a [rows, depth] times one panel [depth, 4 vectors]. The sums stay in
// registers; with rows = FUSED_LSTM_TILE_ROWS they fill the register file.
template <int rows, class V, class Scalar = typename Lanes<V>::Scalar>
FUSED_LSTM_INLINE void multiply(const Scalar* a, int64_t depth, const Scalar* panel,
                                V (&sums)[rows][tile_vectors]) {
  constexpr int lanes = Lanes<V>::count;
  for (int64_t k = 0; k < depth; ++k) {
    V weights[tile_vectors];
    for (int v = 0; v < tile_vectors; ++v) weights[v] = load<V>(panel + v * lanes, lanes);
    panel += tile_vectors * lanes;
    for (int r = 0; r < rows; ++r) {
      const V x = fill<V>(a[r * depth + k]);
      for (int v = 0; v < tile_vectors; ++v) sums[r][v] += x * weights[v];
    }
  }
}

// Calls body(first row, std::integral_constant rows) over blocks of nearly equal height.
template <int rows, class Body>
FUSED_LSTM_INLINE void call_with_rows(int64_t n, int64_t first, const Body& body) {
  if constexpr (rows > 0) {
    if (n == rows) {
      body(first, std::integral_constant<int, rows>{});
    } else {
      call_with_rows<rows - 1>(n, first, body);
    }
  }
}
template <class Body>
void for_row_blocks(int64_t begin, int64_t end, const Body& body) {
  const int64_t blocks = (end - begin + FUSED_LSTM_TILE_ROWS - 1) / FUSED_LSTM_TILE_ROWS;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = begin + (end - begin) * i / blocks;
    const int64_t next = begin + (end - begin) * (i + 1) / blocks;
    call_with_rows<FUSED_LSTM_TILE_ROWS>(next - first, first, body);
  }
}

// Calls body(j, count) over `size` neighbours in vectors of V.
template <class V, class Body>
FUSED_LSTM_INLINE void for_vectors(int64_t size, const Body& body) {
  constexpr int lanes = Lanes<V>::count;
  int64_t j = 0;
  for (; j + lanes <= size; j += lanes) body(j, lanes);
  if (j < size) body(j, static_cast<int>(size - j));
}

template <class Scalar>
int64_t panel_columns(const Factor<Scalar>& factor) {
  return Lanes<typename VectorFor<Scalar>::Type>::count * (factor.gates ? 1 : tile_vectors);
}
template <class Scalar>
int64_t panels(const Factor<Scalar>& factor) {
  const int64_t columns = factor.gates ? factor.columns / tile_vectors : factor.columns;
  return (columns + panel_columns(factor) - 1) / panel_columns(factor);
}
template <class Scalar>
int64_t panel_size(const Factor<Scalar>& factor) {
  return factor.depth * tile_vectors * Lanes<typename VectorFor<Scalar>::Type>::count;
}

template <class Scalar>
void pack(const Factor<Scalar>& factor, int64_t panel, Scalar* to) {
  constexpr int lanes = Lanes<typename VectorFor<Scalar>::Type>::count;
  constexpr int64_t block = 16;  // one line of cache of each column at a time
  to += panel * panel_size(factor);
  const int64_t group = factor.columns / tile_vectors;  // H, for gates
  for (int v = 0; v < tile_vectors; ++v) {
    const int64_t unit = panel * panel_columns(factor) + (factor.gates ? 0 : v * lanes);
    const int64_t left = (factor.gates ? group : factor.columns) - unit;
    const int64_t count = left < 0 ? 0 : left < lanes ? left : lanes;
    const Scalar* from = factor.data + (factor.gates ? v * group + unit : unit) * factor.stride_n;
    for (int64_t first = 0; first < factor.depth; first += block) {
      const int64_t last = first + block < factor.depth ? first + block : factor.depth;
      for (int64_t k = first; k < last; ++k) {
        Scalar* row = to + (k * tile_vectors + v) * lanes;
        for (int64_t n = 0; n < count; ++n) {
          row[n] = from[k * factor.stride_k + n * factor.stride_n];
        }
        for (int64_t n = count; n < lanes; ++n) row[n] = 0;
      }
    }
  }
}

// c [rows, columns] (+)= a [rows, depth] times all panels of a plain factor.
template <class V, class Scalar = typename Lanes<V>::Scalar>
void product(const Scalar* a, int64_t depth, const Scalar* packed, Scalar* c, int64_t columns,
             int64_t rows, bool accumulate) {
  constexpr int lanes = Lanes<V>::count;
  constexpr int64_t width = tile_vectors * lanes;
  for (int64_t first = 0; first < columns; first += width) {
    const Scalar* panel = packed + first * depth;
    for_row_blocks(0, rows, [&](int64_t row, auto height) {
      constexpr int tile_rows = decltype(height)::value;
      V sums[tile_rows][tile_vectors] = {};
      multiply(a + row * depth, depth, panel, sums);
      for (int r = 0; r < tile_rows; ++r) {
        Scalar* to = c + (row + r) * columns + first;
        const int64_t left = columns - first < width ? columns - first : width;
        for_vectors<V>(left, [&](int64_t j, int count) {
          const V sum = sums[r][j / lanes];
          store<V>(to + j, accumulate ? load<V>(to + j, count) + sum : sum, count);
        });
      }
    });
  }
}

// Kept out of line: the tiles of every height share one copy.
template <class V, class Types>
__attribute__((noinline)) void forward_unit_vector(const ForwardParams<Types>& p, const Step& step,
                                                   int64_t b, int64_t j, const Gates<V>& products) {
  constexpr int lanes = Lanes<V>::count;
  if (j + lanes <= p.hidden_size) {
    forward_units<V>(p, step, b, j, products, lanes);
  } else {
    forward_units<V>(p, step, b, j, products, static_cast<int>(p.hidden_size - j));
  }
}

template <class Types>
void forward(const ForwardParams<Types>& p, int64_t begin, int64_t end) {
  using Scalar = typename Types::Accum;
  using V = typename VectorFor<Scalar>::Type;
  constexpr int lanes = Lanes<V>::count;
  const int64_t D = p.input_size, H = p.hidden_size, P = p.projection_size;

  for (int64_t index = 0; index < p.steps.length; ++index) {
    const Step step = make_step(p.steps, index);
    const int64_t live_end = step.rows < end ? step.rows : end;
    if (live_end <= begin) continue;

    for (int64_t j = 0; j < H; j += lanes) {
      for_row_blocks(begin, live_end, [&](int64_t first, auto height) {
        constexpr int tile_rows = decltype(height)::value;
        V sums[tile_rows][tile_vectors] = {};
        if (p.weight_ih) {
          multiply(p.input + (step.offset + first) * D, D, p.weight_ih + j * tile_vectors * D,
                   sums);
        }
        if (p.weight_hh) {
          multiply(p.hidden_state + first * P, P, p.weight_hh + j * tile_vectors * P, sums);
        }
        for (int r = 0; r < tile_rows; ++r) {
          const Gates<V> products = {sums[r][0], sums[r][1], sums[r][2], sums[r][3]};
          forward_unit_vector<V>(p, step, first + r, j, products);
        }
      });
    }
    const int64_t rows = live_end - begin;
    if (p.projected) {
      product<V>(p.unprojected + begin * H, H, p.weight_hr, p.projection + begin * P, P, rows,
                 false);
      for (int64_t b = begin; b < live_end; ++b) {
        for_vectors<V>(P, [&](int64_t j, int count) {
          emit_hidden<V>(p, step, b, j, load<V>(p.projection + b * P + j, count), count);
        });
      }
    }
    __builtin_memcpy(p.hidden_state + begin * P, p.hidden_next + begin * P,
                     rows * P * sizeof(Scalar));
  }
}

template <class Types>
void backward(const BackwardParams<Types>& p, int64_t begin, int64_t end) {
  using V = typename VectorFor<typename Types::Accum>::Type;
  const int64_t H = p.hidden_size, P = p.projection_size;

  for (int64_t index = p.steps.length - 1; index >= 0; --index) {
    const Step step = make_step(p.steps, index);
    const int64_t live_end = step.rows < end ? step.rows : end;
    if (live_end <= begin) continue;
    const int64_t row = step.offset + begin, rows = live_end - begin;

    if (p.projected) {
      for (int64_t b = begin; b < live_end; ++b) {
        for_vectors<V>(P, [&](int64_t j, int count) {
          const V grad = collect_grad_hidden<V>(p, step, b, j, count);
          store<V>(p.grad_projection + (step.offset + b) * P + j, grad, count);
        });
      }
      product<V>(p.grad_projection + row * P, P, p.weight_hr, p.grad_unprojected + begin * H, H,
                 rows, false);
    }
    for (int64_t b = begin; b < live_end; ++b) {
      for_vectors<V>(H, [&](int64_t j, int count) {
        const V grad = p.projected ? load<V>(p.grad_unprojected + b * H + j, count)
                                   : collect_grad_hidden<V>(p, step, b, j, count);
        backward_units<V>(p, step, b, j, grad, count);
      });
    }
    if (p.weight_hh) {
      product<V>(p.grad_preactivations + row * 4 * H, 4 * H, p.weight_hh, p.grad_hidden + begin * P,
                 P, rows, true);
    }
  }
}

template <class Scalar>
constexpr Packing<Scalar> packing = {panels<Scalar>, panel_size<Scalar>, pack<Scalar>};
template <class Types>
constexpr Pair<Types> pair = {forward<Types>, backward<Types>};

}  // namespace

const Kernels& FUSED_LSTM_TABLE() {
  static constexpr Kernels table = {FUSED_LSTM_NAME,    packing<float>, packing<double>,
                                    pair<Float>,        pair<Double>,   pair<HalfFloat>,
                                    pair<BFloat16Float>};
  return table;
}

}  // namespace cpu
}  // namespace fused_lstm
