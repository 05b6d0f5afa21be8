// The CPU kernels, written once. Each kernels_*.cpp includes this file under its own instruction
// set with FUSED_LSTM_VECTOR_BYTES, FUSED_LSTM_TILE_ROWS and FUSED_LSTM_TABLE set. Nothing of the
// standard library that could be compiled out of line is used here: the linker would keep one copy
// for all instruction sets.

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fused_lstm {
namespace cpu {
namespace {

constexpr int kTileVectors = 4;
constexpr int kDirectRows = 3;  // whose sums fit the registers in gemv

template <class Types>
constexpr bool can_transpose = std::is_same_v<typename Types::Storage, typename Types::Accum>;

template <class Types>
using VectorOfTypes = typename VectorFor<typename Types::Accum>::Type;

// Cublas read bfloat16 itself, in tiles (tiles.inl), rather than widened to float32.
template <class Types>
constexpr bool has_bf16_operands = false;
template <>
constexpr bool has_bf16_operands<BFloat16Operands> = true;

// sums [rows, 4 vectors] += rows of a [rows][depth] times one panel [depth, 4 vectors]. With
// rows = FUSED_LSTM_TILE_ROWS the sums fill the register file; they are copied, for the compiler
// keeps only what has no address in registers.
template <int rows, class V, class Scalar = typename Lanes<V>::Scalar>
FUSED_LSTM_INLINE void multiply(const Scalar* const (&a)[rows], int64_t depth, const Scalar* panel,
                                V (&sums)[rows][kTileVectors]) {
  constexpr int lanes = Lanes<V>::count;
  constexpr int64_t ahead = 16;  // rows of the panel; panels come from the second-level cache
  constexpr int line = 64 / sizeof(Scalar);
  constexpr int copies = rows == 1 ? 2 : 1;  // four sums are too few to hide an addition's latency
  V own[copies][rows][kTileVectors] = {};
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kTileVectors; ++v) own[0][r][v] = sums[r][v];
  }
  const auto take = [&](int64_t k, V(&to)[rows][kTileVectors]) {
    const Scalar* from = panel + k * kTileVectors * lanes;
    V weights[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) weights[v] = load<V>(from + v * lanes, lanes);
    for (int n = 0; n < kTileVectors * lanes; n += line) {
      __builtin_prefetch(from + ahead * kTileVectors * lanes + n);
    }
    for (int r = 0; r < rows; ++r) {
      const V x = fill<V>(a[r][k]);
      for (int v = 0; v < kTileVectors; ++v) to[r][v] += x * weights[v];
    }
  };
  int64_t k = 0;
  for (; k + copies <= depth; k += copies) {
    for (int copy = 0; copy < copies; ++copy) take(k + copy, own[copy]);
  }
  for (; k < depth; ++k) take(k, own[0]);
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kTileVectors; ++v) {
      sums[r][v] = copies == 2 ? own[0][r][v] + own[copies - 1][r][v] : own[0][r][v];
    }
  }
}

// Calls body(first row, std::integral_constant rows) over blocks of nearly equal height, at most
// `highest`.
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
template <int highest, class Body>
FUSED_LSTM_INLINE void for_row_blocks(int64_t rows, const Body& body) {
  const int64_t blocks = (rows + highest - 1) / highest;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = rows * i / blocks;
    const int64_t next = rows * (i + 1) / blocks;
    call_with_rows<highest>(next - first, first, body);
  }
}

// Calls body(j, count) over the neighbours begin .. end in vectors of V.
template <class V, class Body>
FUSED_LSTM_INLINE void for_vectors(int64_t begin, int64_t end, const Body& body) {
  constexpr int lanes = Lanes<V>::count;
  int64_t j = begin;
  for (; j + lanes <= end; j += lanes) body(j, lanes);
  if (j < end) body(j, static_cast<int>(end - j));
}

template <class Types>
constexpr int64_t lanes_of() {
  return Lanes<VectorOfTypes<Types>>::count;
}

template <class Types>
int64_t panels(const Packing<Types>& w) {
  const int64_t width = lanes_of<Types>() * (w.layout == PanelLayout::gates ? 1 : kTileVectors);
  const int64_t columns = w.layout == PanelLayout::gates   ? w.rows / 4
                          : w.layout == PanelLayout::plain ? w.columns
                                                           : w.rows;
  return (columns + width - 1) / width;
}
template <class Types>
int64_t panel_size(const Packing<Types>& w) {
  return (w.layout == PanelLayout::plain ? w.rows : w.columns) * kTileVectors * lanes_of<Types>();
}

// One vector of each row of a panel: columns of the panel are rows of the weight, `depth` long.
// Columns from `count` on are zero.
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
  constexpr int64_t lanes = Lanes<V>::count;
  to += panel * panel_size(w);
  if (w.layout == PanelLayout::plain) {
    const int64_t first = panel * kTileVectors * lanes;
    for (int64_t k = 0; k < w.rows; ++k) {
      for (int v = 0; v < kTileVectors; ++v, to += lanes) {
        const int64_t left = w.columns - first - v * lanes;
        const int count = static_cast<int>(left < 0 ? 0 : left < lanes ? left : lanes);
        store<V>(to, load<V>(w.data + k * w.columns + first + v * lanes, count), lanes);
      }
    }
    return;
  }
  for (int v = 0; v < kTileVectors; ++v, to += lanes) {
    // Rows of the weight that become this vector's columns.
    const int64_t rows = w.layout == PanelLayout::gates ? w.rows / 4 : w.rows;
    const int64_t skipped = w.layout == PanelLayout::gates ? v * rows : 0;
    const int64_t first =
        w.layout == PanelLayout::gates ? panel * lanes : (panel * kTileVectors + v) * lanes;
    pack_transposed<V>(w.data + (skipped + first) * w.columns, w.columns, rows - first, to);
  }
}

// Depth as panels have it, and the rows of memory that preactivations of `rows` rows may touch.
template <class Types>
int64_t panel_depth(int64_t depth) {
  return has_bf16_operands<Types> ? (depth + kAmxDepth - 1) / kAmxDepth * kAmxDepth : depth;
}
template <class Types>
int64_t readable_rows(int64_t rows) {
  return has_bf16_operands<Types> ? rows + kAmxRows - 1 : rows;
}

// How dot preactivations go through the numbers X of one factor and T of the other: `width` at a
// time.
template <class V, class X, class T>
struct Dot {
  static constexpr int width = Lanes<V>::count;
  static FUSED_LSTM_INLINE V of_x(const X* from, int count) { return load<V>(from, count); }
  static FUSED_LSTM_INLINE V of_w(const T* from, int count) { return load<V>(from, count); }
  static FUSED_LSTM_INLINE V add(V sum, V x, V w) { return sum + x * w; }
};

// sums[r], lane n: row n of w [count, depth] times x[r] [depth]. Lanes from `count` on are zero.
template <int rows, class V, class X, class T>
FUSED_LSTM_INLINE void gemv(const T* w, int64_t depth, int64_t count, const X* const (&x)[rows],
                            V (&sums)[rows]) {
  using D = Dot<V, X, T>;
  constexpr int lanes = Lanes<V>::count;
  constexpr int block = rows == 1 ? lanes : lanes / 2;  // rows of w whose sums fit the registers
  V parts[rows][lanes];  // of row n of w, each lane's part of the sum
  const auto take = [&](int first, auto taken) {
    constexpr int n_rows = decltype(taken)::value;
    V part[rows][n_rows] = {};
    const auto step = [&](int64_t k, int count_of_k) {
      V factors[rows];
      for (int r = 0; r < rows; ++r) factors[r] = D::of_x(x[r] + k, count_of_k);
      for (int n = 0; n < n_rows; ++n) {
        const V weights = D::of_w(w + (first + n) * depth + k, count_of_k);
        for (int r = 0; r < rows; ++r) part[r][n] = D::add(part[r][n], factors[r], weights);
      }
    };
    int64_t k = 0;
    for (; k + D::width <= depth; k += D::width) step(k, D::width);
    if (k < depth) step(k, static_cast<int>(depth - k));
    for (int r = 0; r < rows; ++r) {
      for (int n = 0; n < n_rows; ++n) parts[r][first + n] = part[r][n];
    }
  };
  if (count >= lanes) {
    for (int n = 0; n < lanes; n += block) take(n, std::integral_constant<int, block>{});
  } else {
    for (int r = 0; r < rows; ++r) {
      for (int n = 0; n < lanes; ++n) parts[r][n] = V{};
    }
    for (int n = 0; n < count; ++n) take(n, std::integral_constant<int, 1>{});
  }
  for (int r = 0; r < rows; ++r) sums[r] = sum_of_each(parts[r]);
}

// The other way round, for a weight that is used once and so not worth packing: the few rows of the
// left factor are transposed, a row a lane, [groups of rows, depth, lanes]. row_of(row), called in
// order, says where a row [depth] lies.
template <class V, class RowOf, class Scalar = typename Lanes<V>::Scalar>
void turn(int64_t rows, int64_t depth, const RowOf& row_of, Scalar* to) {
  constexpr int lanes = Lanes<V>::count;
  for (int64_t first = 0; first < rows; first += lanes, to += depth * lanes) {
    const Scalar* pointers[lanes];
    for (int n = 0; n < lanes; ++n) {  // lanes past the last row are ignored
      pointers[n] = first + n < rows ? row_of(first + n) : pointers[0];
    }
    for_vectors<V>(0, depth, [&](int64_t k, int part) {
      V square[lanes];
      for (int n = 0; n < lanes; ++n) square[n] = load<V>(pointers[n] + k, part);
      transpose(square);
      for (int n = 0; n < part; ++n) store<V>(to + (k + n) * lanes, square[n], lanes);
    });
  }
}

// sums [rows of the weight, groups of transposed rows] = weight [rows, depth] times transposed
// rows.
template <int rows, int groups, class V, class Scalar = typename Lanes<V>::Scalar>
FUSED_LSTM_INLINE void multiply_transposed(const Scalar* weight, int64_t depth,
                                           const Scalar* transposed, V (*sums)[kTileVectors]) {
  constexpr int lanes = Lanes<V>::count;
  constexpr int line = 64 / sizeof(Scalar);
  constexpr int copies = groups == 1 ? 2 : 1;  // few sums do not hide an addition's latency
  V own[copies][rows][groups] = {};
  const auto take = [&](int64_t k, V(&to)[rows][groups]) {
    V x[groups];
    for (int g = 0; g < groups; ++g) x[g] = load<V>(transposed + (g * depth + k) * lanes, lanes);
    for (int r = 0; r < rows; ++r) {
      const V factor = fill<V>(weight[r * depth + k]);
      for (int g = 0; g < groups; ++g) to[r][g] += factor * x[g];
    }
  };
  int64_t k = 0;
  for (; k + line <= depth; k += line) {
    for (int r = 0; r < rows; ++r) __builtin_prefetch(weight + (rows + r) * depth + k);
    for (int n = 0; n < line; n += copies) {
      for (int copy = 0; copy < copies; ++copy) take(k + n + copy, own[copy]);
    }
  }
  for (; k < depth; ++k) take(k, own[0]);
  for (int r = 0; r < rows; ++r) {
    for (int g = 0; g < groups; ++g) {
      sums[r][g] = copies == 2 ? own[0][r][g] + own[copies - 1][r][g] : own[0][r][g];
    }
  }
}

// to [rows, 4, lanes] = from + transposed rows times the rows of a weight [4H, depth] that belong
// to the gates of units j .. ; from's rows are from_stride apart, 0 where all have the same.
template <class V, class Scalar = typename Lanes<V>::Scalar>
void multiply_transposed_tiles(const Scalar* transposed, int64_t rows, const Scalar* weight,
                               int64_t depth, int64_t H, int64_t j, const Scalar* from,
                               int64_t from_stride, Scalar* to) {
  constexpr int lanes = Lanes<V>::count, width = kTileVectors * lanes;
  const int64_t units = H - j < lanes ? H - j : lanes;
  const int64_t groups = (rows + lanes - 1) / lanes;
  for_row_blocks<kTileVectors>(groups, [&](int64_t first, auto block) {
    constexpr int groups_of_block = decltype(block)::value;
    // Sums that fill the register file, and enough of them to hide an addition's latency.
    constexpr int highest =
        groups_of_block > 2 ? FUSED_LSTM_TILE_ROWS : FUSED_LSTM_TILE_ROWS / 3 * 4;
    for (int gate = 0; gate < kTileVectors; ++gate) {
      V sums[lanes][kTileVectors] = {};
      for_row_blocks<highest>(units, [&](int64_t unit, auto height) {
        multiply_transposed<decltype(height)::value, groups_of_block>(
            weight + (gate * H + j + unit) * depth, depth, transposed + first * depth * lanes,
            sums + unit);
      });
      for (int g = 0; g < groups_of_block; ++g) {
        V square[lanes];
        for (int n = 0; n < lanes; ++n) square[n] = sums[n][g];
        transpose(square);
        const int64_t row = (first + g) * lanes;
        for (int n = 0; n < lanes && row + n < rows; ++n) {
          const V start = load<V>(from + (row + n) * from_stride + gate * lanes, lanes);
          store<V>(to + (row + n) * width + gate * lanes, start + square[n], lanes);
        }
      }
    }
  });
}

// c [rows, columns] (+)= a [rows, depth] times the panels of a plain weight, of the columns
// begin .. end; begin is where a panel begins.
template <class V, class Scalar = typename Lanes<V>::Scalar>
void gemm(const Scalar* a, int64_t depth, const Scalar* panels, Scalar* c, int64_t columns,
          int64_t begin, int64_t end, int64_t rows, bool accumulate, bool downwards,
          Scalar* /*stage*/) {
  constexpr int lanes = Lanes<V>::count;
  constexpr int64_t width = kTileVectors * lanes;
  const int64_t blocks = (end - begin + width - 1) / width;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = begin + (downwards ? blocks - 1 - i : i) * width;
    const int64_t last = first + width < end ? first + width : end;
    for_row_blocks<FUSED_LSTM_TILE_ROWS>(rows, [&](int64_t row, auto height) {
      constexpr int height_of_tile = decltype(height)::value;
      V sums[height_of_tile][kTileVectors] = {};
      const Scalar* pointers[height_of_tile];
      for (int r = 0; r < height_of_tile; ++r) pointers[r] = a + (row + r) * depth;
      multiply(pointers, depth, panels + first * depth, sums);
      for (int r = 0; r < height_of_tile; ++r) {
        Scalar* to = c + (row + r) * columns;
        for_vectors<V>(first, last, [&](int64_t j, int count) {
          const V sum = sums[r][(j - first) / lanes];
          store<V>(to + j, accumulate ? load<V>(to + j, count) + sum : sum, count);
        });
      }
    });
  }
}

}  // namespace
}  // namespace cpu
}  // namespace fused_lstm

#ifdef FUSED_LSTM_BF16_OPERANDS
#include "cpu/amx.inl"
#endif

namespace fused_lstm {
namespace cpu {
namespace {

// c [rows, columns] += a [rows, depth] w [depth, columns], of the columns begin .. end, for few
// rows: w is read once, in order. depth is a multiple of 4.
template <class V, class X, class T, class Scalar = typename Lanes<V>::Scalar>
void add_gemv(const X* a, int64_t depth, const T* w, Scalar* c, int64_t columns, int64_t begin,
              int64_t end, int64_t rows) {
  const auto take = [&](int64_t k, auto taken) {
    for (int64_t r = 0; r < rows; ++r) {
      Scalar factors[decltype(taken)::value];
      for (int i = 0; i < decltype(taken)::value; ++i) {
        factors[i] = load<Scalar>(a + r * depth + k + i, 1);
      }
      for_vectors<V>(begin, end, [&](int64_t j, int count) {
        V sum = load<V>(c + r * columns + j, count);
        for (int i = 0; i < decltype(taken)::value; ++i) {
          sum += fill<V>(factors[i]) * load<V>(w + (k + i) * columns + j, count);
        }
        store<V>(c + r * columns + j, sum, count);
      });
    }
  };
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) take(k, std::integral_constant<int, 8>{});
  if (k < depth) take(k, std::integral_constant<int, 4>{});
}

int64_t valid_rows(const Steps& steps, const Part& part, int64_t index) {
  const int64_t rows = make_step(steps, index).rows;
  return (rows < part.end ? rows : part.end) - part.begin;
}

// The rows of a part's sequences, step after step from `index` on.
class Rows {
 public:
  Rows(const Steps& steps, const Part& part, int64_t index)
      : steps_(steps), part_(part), index_(index) {
    enter();
  }
  int64_t next() {
    while (taken_ >= rows_) {
      ++index_;
      enter();
    }
    return first_ + taken_++;
  }

 private:
  void enter() {
    taken_ = 0;
    rows_ = valid_rows(steps_, part_, index_);
    first_ = make_step(steps_, index_).offset + part_.begin;
  }
  const Steps& steps_;
  const Part& part_;
  int64_t index_, first_, taken_, rows_;
};

// A part's own memory.
template <class Types>
struct Scratch {
  using Scalar = typename Types::Accum;
  using Storage = typename Types::Storage;
  using Operand = typename Types::Operand;
  static constexpr int64_t width = kTileVectors * lanes_of<Types>();
  static constexpr bool copies_input =
      has_bf16_operands<Types> || sizeof(Storage) != sizeof(Operand);

  // For a part with so many sequences and hidden units.
  Scratch(const CpuForwardParams<Types>& f, int64_t sequences, int64_t units, Scalar* memory)
      : rows(readable_rows<Types>(f.chunk * sequences)) {
    const ForwardParams<Types>& p = f.layer;
    const int64_t blocks = (units + lanes_of<Types>() - 1) / lanes_of<Types>();
    const int64_t D = panel_depth<Types>(f.input_size), P = panel_depth<Types>(p.projection_size);
    const int64_t H = panel_depth<Types>(p.hidden_size);
    char* next = reinterpret_cast<char*>(memory);
    const auto take = [&](auto*& to, int64_t numbers) {
      constexpr int64_t block = width * sizeof(Scalar);
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(next);
      next += (numbers * static_cast<int64_t>(sizeof(*to)) + block - 1) / block * block;
    };
    take(bias, blocks * width);
    take(panel, (D > P ? D : P) * width);
    const int64_t groups = (rows + lanes_of<Types>() - 1) / lanes_of<Types>();
    take(transposed, f.input_gemm == Gemm::transposed || f.recurrent_gemm == Gemm::transposed
                         ? groups * lanes_of<Types>() * (D > P ? D : P)
                         : 0);
    take(preactivations, blocks * rows * width);
    take(input, copies_input ? rows * D : 0);
    take(stage, has_bf16_operands<Types> && p.projected ? readable_rows<Types>(1) * H : 0);
    size = (next - reinterpret_cast<char*>(memory)) / static_cast<int64_t>(sizeof(Scalar));
  }

  int64_t rows;            // at most, of one chunk of steps
  Scalar* bias;            // [blocks, 4, lanes], both biases
  Operand* panel;          // of a weight that is not packed ahead
  Operand* transposed;     // input or hidden states for a weight that is used once
  Scalar* preactivations;  // [blocks, rows, 4, lanes], with the input, biases added
  Operand* input;          // [rows, panel_depth(D)] of input that is not read where it lies
  Operand* stage;          // for the gemm with weight_hr
  int64_t size;            // numbers
};

template <class Types>
int64_t forward_scratch(const CpuForwardParams<Types>& f, int64_t sequences, int64_t units) {
  return Scratch<Types>(f, sequences, units, nullptr).size;
}

// The panel of units j .. of a weight [4H, depth].
template <class Types>
const typename Types::Operand* gate_panel(const CpuForwardParams<Types>& f,
                                          const Weight<Types>& weight, int64_t depth, int64_t j,
                                          const Scratch<Types>& scratch) {
  const Packing<Types> packing = {weight.data, 4 * f.layer.hidden_size, depth, PanelLayout::gates};
  const int64_t panel = j / lanes_of<Types>(), before = panel * panel_size(packing);
  if (weight.panels) return weight.panels + before;
  pack(packing, panel, scratch.panel - before);
  return scratch.panel;
}

// sums += the four gates of units j .. : rows of a weight [4H, depth] where it lies, times x.
template <int rows, class V, class X, class T>
FUSED_LSTM_INLINE void multiply_direct(const X* const (&x)[rows], int64_t depth, const T* weight,
                                       int64_t H, int64_t j, V (&sums)[rows][kTileVectors]) {
  for (int gate = 0; gate < kTileVectors; ++gate) {
    V preactivations[rows];
    gemv(weight + (gate * H + j) * depth, depth, H - j, x, preactivations);
    for (int r = 0; r < rows; ++r) sums[r][gate] += preactivations[r];
  }
}

template <class V, class Scalar>
FUSED_LSTM_INLINE void load_tile_row(const Scalar* from, V (&sums)[kTileVectors]) {
  constexpr int lanes = Lanes<V>::count;
  for (int v = 0; v < kTileVectors; ++v) sums[v] = load<V>(from + v * lanes, lanes);
}

template <class V, class Scalar>
FUSED_LSTM_INLINE void store_tile_row(Scalar* to, const V (&sums)[kTileVectors]) {
  constexpr int lanes = Lanes<V>::count;
  for (int v = 0; v < kTileVectors; ++v) store<V>(to + v * lanes, sums[v], lanes);
}

// tile(std::integral_constant highest, accumulate) with the way to add the preactivations of a
// weight [4H, depth] and units j .. to a tile's sums: from a panel, or from where the weight lies.
// Nothing for preactivations in AMX tiles or of transposed rows, whose sums are in memory.
template <class Types, class Tile>
FUSED_LSTM_INLINE void for_tiles(const CpuForwardParams<Types>& f, const Weight<Types>& weight,
                                 Gemm strategy, int64_t depth, int64_t j,
                                 const Scratch<Types>& scratch, const Tile& tile) {
  if (strategy == Gemm::dot) {
    tile(std::integral_constant<int, kDirectRows>{}, [&](const auto& pointers, auto& sums) {
      multiply_direct(pointers, depth, weight.data, f.layer.hidden_size, j, sums);
    });
  } else if constexpr (!has_bf16_operands<Types>) {
    if (strategy == Gemm::transposed) return;
    const typename Types::Operand* const panel = gate_panel(f, weight, depth, j, scratch);
    tile(std::integral_constant<int, FUSED_LSTM_TILE_ROWS>{},
         [&](const auto& pointers, auto& sums) { multiply(pointers, depth, panel, sums); });
  }
}

// What a part's units start from.
template <class Types>
void start(const CpuForwardParams<Types>& f, const Part& part, const Scratch<Types>& scratch) {
  using V = VectorOfTypes<Types>;
  const ForwardParams<Types>& p = f.layer;
  const int64_t H = p.hidden_size, P = p.projection_size;
  const Step step = make_step(p.steps, 0);
  for (int64_t b = part.begin; b < part.end; ++b) {
    for_vectors<V>(part.first_unit, part.last_unit, [&](int64_t j, int count) {
      store<V>(p.cell_state + b * H + j, load_cell<V>(p.c_0, b * H + j, count), count);
    });
    const int64_t first = p.projected ? 0 : part.first_unit;
    for_vectors<V>(first, p.projected ? P : part.last_unit, [&](int64_t j, int count) {
      const V hidden = first_hidden<V>(p, step, b, j, count);
      for (typename Types::Operand* state : f.hidden) {
        store<V>(state + b * p.hidden_stride + j, hidden, count);
      }
    });
    if (p.projected || part.last_unit == H) {
      for (typename Types::Operand* state : f.hidden) {
        for (int64_t j = P; j < p.hidden_stride; ++j) state[b * p.hidden_stride + j] = {};
      }
    }
  }
  typename Types::Accum* to = scratch.bias;
  for_vectors<V>(part.first_unit, part.last_unit, [&](int64_t j, int count) {
    for (int gate = 0; gate < kTileVectors; ++gate, to += Lanes<V>::count) {
      V sum = {};
      if (f.bias_ih) sum += load<V>(f.bias_ih + gate * H + j, count);
      if (f.bias_hh) sum += load<V>(f.bias_hh + gate * H + j, count);
      store<V>(to, sum, Lanes<V>::count);
    }
  });
}

// The preactivations of the input with the part's units, biases included, of the steps first ..
// last that have `rows` rows together.
template <class Types>
void multiply_input(const CpuForwardParams<Types>& f, const Part& part,
                    const Scratch<Types>& scratch, int64_t first, int64_t rows) {
  using Scalar = typename Types::Accum;
  using Operand = typename Types::Operand;
  using V = VectorOfTypes<Types>;
  constexpr int lanes = Lanes<V>::count, width = kTileVectors * lanes;
  const int64_t D = f.input_size;
  const Steps& steps = f.layer.steps;

  const bool copies =
      Scratch<Types>::copies_input && !(has_bf16_operands<Types> && f.input_gemm == Gemm::dot);
  const int64_t depth = panel_depth<Types>(D);
  if (copies) {
    Rows all(steps, part, first);
    for (int64_t row = 0; row < rows; ++row) {
      const typename Types::Storage* from = f.input + all.next() * D;
      Operand* to = scratch.input + row * depth;
      for_vectors<V>(
          0, D, [&](int64_t k, int count) { store<V>(to + k, load<V>(from + k, count), count); });
      for (int64_t k = D; k < depth; ++k) to[k] = {};
    }
  }
  if constexpr (can_transpose<Types>) {
    if (f.input_gemm == Gemm::transposed) {
      Rows all(steps, part, first);
      turn<V>(rows, D, [&](int64_t) { return f.input + all.next() * D; }, scratch.transposed);
    }
  }
  const Scalar* bias = scratch.bias;
  Scalar* preactivations = scratch.preactivations;
  for (int64_t j = part.first_unit; j < part.last_unit; j += lanes) {
    if constexpr (has_bf16_operands<Types>) {
      if (f.input_gemm != Gemm::dot) {
        const Operand* const panel = gate_panel(f, f.weight_ih, D, j, scratch);
        for (int64_t row = 0; row < rows; row += kAmxRows) {
          multiply_tile(scratch.input + row * depth, depth, depth, panel, bias, 0,
                        preactivations + row * width);
        }
      }
    }
    if constexpr (can_transpose<Types>) {
      if (f.input_gemm == Gemm::transposed) {
        multiply_transposed_tiles<V>(scratch.transposed, rows, f.weight_ih.data, D,
                                     f.layer.hidden_size, j, bias, 0, preactivations);
      }
    }
    Rows all(steps, part, first);
    const auto input_of = [&](int64_t row) -> const Operand* {
      if constexpr (has_bf16_operands<Types> || !Scratch<Types>::copies_input) {
        return f.input + all.next() * D;
      } else {
        return scratch.input + row * D;
      }
    };
    const auto tile = [&](auto highest, const auto& accumulate) {
      for_row_blocks<decltype(highest)::value>(rows, [&](int64_t row, auto height) {
        constexpr int height_of_tile = decltype(height)::value;
        V sums[height_of_tile][kTileVectors];
        const Operand* pointers[height_of_tile];
        for (int r = 0; r < height_of_tile; ++r) {
          pointers[r] = input_of(row + r);
          load_tile_row(bias, sums[r]);
        }
        accumulate(pointers, sums);
        for (int r = 0; r < height_of_tile; ++r) {
          store_tile_row(preactivations + (row + r) * width, sums[r]);
        }
      });
    };
    for_tiles(f, f.weight_ih, f.input_gemm, D, j, scratch, tile);
    bias += width;
    preactivations += scratch.rows * width;
  }
}

// Units j .. of a tile of sequences b .. through a step, from their preactivations sums [rows, 4,
// lanes], which are overwritten. First all cell states, then all hidden states: in one go a row's
// long chain of dependent operations would leave the processor waiting. Kept out of line: the tiles
// of every height share one copy.
template <class V, class Types>
__attribute__((noinline)) void finish_tile(const CpuForwardParams<Types>& f, const Step& step,
                                           int64_t b, int64_t rows, int64_t j,
                                           typename Types::Accum* sums,
                                           const typename Types::Operand* hidden,
                                           typename Types::Operand* next) {
  constexpr int lanes = Lanes<V>::count;
  const auto finish = [&](int count) {
    for (int64_t r = 0; r < rows; ++r) {
      typename Types::Accum* const row = sums + r * kTileVectors * lanes;
      const Updated<V> updated =
          update_cell<V>(f.layer, step, b + r, j, load_gates<V>(row, lanes, 0, lanes),
                         f.layer.cell_state + (b + r) * f.layer.hidden_size + j, count);
      store<V>(row, updated.cell, lanes);
      store<V>(row + lanes, updated.output_gate, lanes);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const typename Types::Accum* const row = sums + r * kTileVectors * lanes;
      const int64_t running = (b + r) * f.layer.hidden_stride + j;
      update_hidden<V>(f.layer, step, b + r, j, {load<V>(row, lanes), load<V>(row + lanes, lanes)},
                       hidden + running, next + running, count);
    }
  };
  const int64_t left = f.layer.hidden_size - j;
  if (left >= lanes) {
    finish(lanes);
  } else {
    finish(static_cast<int>(left));
  }
}

// One step of the part's units. preactivations: of the step's rows with the input, in the first
// block.
template <class Types>
void run_step(const CpuForwardParams<Types>& f, const Part& part, const Scratch<Types>& scratch,
              const Step& step, int64_t index, int64_t rows,
              const typename Types::Accum* preactivations) {
  using Scalar = typename Types::Accum;
  using Operand = typename Types::Operand;
  using V = VectorOfTypes<Types>;
  constexpr int lanes = Lanes<V>::count, width = kTileVectors * lanes;
  const ForwardParams<Types>& p = f.layer;
  const int64_t P = p.projection_size;
  const Operand* const hidden = f.hidden[index % 2];
  Operand* const next = f.hidden[(index + 1) % 2];

  if constexpr (can_transpose<Types>) {
    if (f.recurrent_gemm == Gemm::transposed) {
      const auto row_of = [&](int64_t row) {
        return hidden + (part.begin + row) * p.hidden_stride;
      };
      turn<V>(rows, P, row_of, scratch.transposed);
    }
  }
  // Every other step goes downwards: the weights read last are still in the cache.
  const int64_t blocks = (part.last_unit - part.first_unit + lanes - 1) / lanes;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t block = index % 2 ? blocks - 1 - i : i;
    const int64_t j = part.first_unit + block * lanes;
    const Scalar* const of_input = preactivations + block * scratch.rows * width;
    if constexpr (has_bf16_operands<Types>) {
      if (f.recurrent_gemm != Gemm::dot) {
        const Operand* const panel = gate_panel(f, f.weight_hh, P, j, scratch);
        for (int64_t row = 0; row < rows; row += kAmxRows) {
          alignas(64) Scalar tile[kAmxRows * width];
          multiply_tile(hidden + (part.begin + row) * p.hidden_stride, p.hidden_stride,
                        panel_depth<Types>(P), panel, of_input + row * width, width, tile);
          const int64_t height = rows - row < kAmxRows ? rows - row : kAmxRows;
          finish_tile<V>(f, step, part.begin + row, height, j, tile, hidden, next);
        }
      }
    }
    if constexpr (can_transpose<Types>) {
      if (f.recurrent_gemm == Gemm::transposed) {
        for (int64_t row = 0; row < rows; row += width) {
          alignas(64) Scalar tile[width * width];
          const int64_t height = rows - row < width ? rows - row : width;
          multiply_transposed_tiles<V>(scratch.transposed + row * P, height, f.weight_hh.data, P,
                                       p.hidden_size, j, of_input + row * width, width, tile);
          finish_tile<V>(f, step, part.begin + row, height, j, tile, hidden, next);
        }
      }
    }
    const auto tile = [&](auto highest, const auto& accumulate) {
      for_row_blocks<decltype(highest)::value>(rows, [&](int64_t row, auto height) {
        constexpr int height_of_tile = decltype(height)::value;
        V sums[height_of_tile][kTileVectors];
        const Operand* pointers[height_of_tile];
        for (int r = 0; r < height_of_tile; ++r) {
          pointers[r] = hidden + (part.begin + row + r) * p.hidden_stride;
          load_tile_row(of_input + (row + r) * width, sums[r]);
        }
        accumulate(pointers, sums);
        alignas(64) Scalar to_finish[height_of_tile * width];
        for (int r = 0; r < height_of_tile; ++r) store_tile_row(to_finish + r * width, sums[r]);
        finish_tile<V>(f, step, part.begin + row, height_of_tile, j, to_finish, hidden, next);
      });
    };
    for_tiles(f, f.weight_hh, f.recurrent_gemm, P, j, scratch, tile);
  }

  if (p.projected) {
    gemm<V>(p.unprojected + part.begin * p.hidden_size, p.hidden_size, f.weight_hr.panels,
            p.projection + part.begin * P, P, 0, P, rows, /*accumulate=*/false,
            /*downwards=*/false, scratch.stage);
    for (int64_t b = part.begin; b < part.begin + rows; ++b) {
      for_vectors<V>(0, P, [&](int64_t j, int count) {
        const V h = load<V>(p.projection + b * P + j, count);
        const int64_t running = b * p.hidden_stride + j;
        emit_hidden<V>(p, step, b, j, h, hidden + running, next + running, count);
      });
    }
  }
}

// What a thread needs for the preactivations of these types while it takes them.
template <class Types>
struct WithTiles {};
#ifdef FUSED_LSTM_BF16_OPERANDS
template <>
struct WithTiles<BFloat16Operands> : TileConfiguration {};
#endif

template <class Types>
void forward(const CpuForwardParams<Types>& f, const Part& part) {
  [[maybe_unused]] const WithTiles<Types> tiles;
  const Steps& steps = f.layer.steps;
  const Scratch<Types> scratch(f, part.end - part.begin, part.last_unit - part.first_unit,
                               f.scratch + part.number * f.scratch_size);
  start(f, part, scratch);
  for (int64_t first = 0; first < steps.length; first += f.chunk) {
    const int64_t last = first + f.chunk < steps.length ? first + f.chunk : steps.length;
    int64_t all_rows = 0;
    for (int64_t index = first; index < last; ++index) {
      const int64_t rows = valid_rows(steps, part, index);
      if (rows > 0) all_rows += rows;
    }
    if (all_rows == 0) continue;
    multiply_input(f, part, scratch, first, all_rows);

    const typename Types::Accum* preactivations = scratch.preactivations;
    for (int64_t index = first; index < last; ++index) {
      const int64_t rows = valid_rows(steps, part, index);
      if (rows <= 0) continue;
      if (part.barrier) part.barrier->wait(part.weight);  // all have the hidden state
      run_step(f, part, scratch, make_step(steps, index), index, rows, preactivations);
      preactivations += rows * Scratch<Types>::width;
    }
  }
}

template <class Types>
int64_t backward_stage(const CpuBackwardParams<Types>& f) {
  const int64_t depth = panel_depth<Types>(4 * f.layer.hidden_size);  // P is no more
  return has_bf16_operands<Types> ? readable_rows<Types>(1) * depth : 0;
}

template <class Types>
void backward(const CpuBackwardParams<Types>& f, const Part& part) {
  using V = VectorOfTypes<Types>;
  [[maybe_unused]] const WithTiles<Types> tiles;
  typename Types::Operand* const stage = f.stage ? f.stage + part.number * f.stage_size : nullptr;
  const BackwardParams<Types>& p = f.layer;
  const int64_t H = p.hidden_size, P = p.projection_size;

  for (int64_t index = p.steps.length - 1; index >= 0; --index) {
    const Step step = make_step(p.steps, index);
    const int64_t rows = valid_rows(p.steps, part, index);
    if (rows <= 0) continue;
    const int64_t row = step.offset + part.begin, end = part.begin + rows;

    if (p.projected) {
      for (int64_t b = part.begin; b < end; ++b) {
        for_vectors<V>(0, P, [&](int64_t j, int count) {
          save_h_prev<V>(p, step, b, j, count);
          const V grad =
              collect_grad_hidden<V>(p, step, b, j, load_grad_output<V>(p, step, b, j, count),
                                     p.grad_hidden + b * P + j, count);
          store<V>(p.grad_projection + (step.offset + b) * P + j, grad, count);
        });
      }
      gemm<V>(p.grad_projection + row * P, P, f.weight_hr.panels,
              p.grad_unprojected + part.begin * H, H, 0, H, rows, /*accumulate=*/false,
              /*downwards=*/false, stage);
    }
    for (int64_t b = part.begin; b < end; ++b) {
      for_vectors<V>(part.first_unit, part.last_unit, [&](int64_t j, int count) {
        const int64_t state = b * H + j;
        V grad;
        if (p.projected) {
          grad = load<V>(p.grad_unprojected + state, count);
        } else {
          save_h_prev<V>(p, step, b, j, count);
          grad = collect_grad_hidden<V>(p, step, b, j, load_grad_output<V>(p, step, b, j, count),
                                        p.grad_hidden + state, count);
        }
        backward_units<V>(p, step, b, j, grad, load_saved<V>(p, step, b, j, count),
                          p.grad_cell + state, count);
      });
    }
    if (index == 0 && !f.last_gemm) return;
    if (part.barrier) part.barrier->wait(part.weight);  // all have the step's gradients
    const auto* grads = p.grad_preactivations + row * 4 * H;
    auto* grad_hidden = p.grad_hidden + part.begin * P;
    const int64_t first = p.projected ? 0 : part.first_unit;
    const int64_t last = p.projected ? P : part.last_unit;
    if (f.recurrent_gemm == Gemm::dot) {
      add_gemv<V>(grads, 4 * H, f.weight_hh.data, grad_hidden, P, first, last, rows);
    } else {
      gemm<V>(grads, 4 * H, f.weight_hh.panels, grad_hidden, P, first, last, rows,
              /*accumulate=*/true, /*downwards=*/index % 2 == 1, stage);
    }
  }
}

template <class Types>
constexpr Functions<Types> functions = {
    panels<Types>,         panel_size<Types>, pack<Types>,    forward_scratch<Types>,
    backward_stage<Types>, forward<Types>,    backward<Types>};

#ifdef FUSED_LSTM_BF16_OPERANDS
constexpr const Functions<BFloat16Operands>* narrow = &functions<BFloat16Operands>;
#else
constexpr const Functions<BFloat16Operands>* narrow = nullptr;
#endif

}  // namespace

const Kernels& FUSED_LSTM_TABLE() {
  static constexpr Kernels table = {FUSED_LSTM_NAME,
                                    kTileVectors * lanes_of<Float>(),
                                    functions<Float>,
                                    functions<Double>,
                                    functions<HalfFloat>,
                                    functions<BFloat16Float>,
                                    narrow};
  return table;
}

}  // namespace cpu
}  // namespace fused_lstm
