// Cublas of bfloat16 in AMX tiles, summed in float32: what kernels.inl does in registers for
// other types. Intel's Architecture Instruction Set Extensions Programming Reference, chapter 3.
//
// A panel holds pairs of neighbours in k: [depth / 2, 4 vectors, 16 lanes, 2], depth filled up with
// zeros to whole tiles. One gemm takes 16 rows; where fewer count, the others are computed from
// whatever lies there, and ignored.

namespace fused_lstm {
namespace cpu {
namespace {

// While it lives, this thread's tiles are 16 rows of 64 bytes.
class TileConfiguration {
 public:
  TileConfiguration() {
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } configuration = {};
    static_assert(sizeof(configuration) == 64, "as LDTILECFG reads it");
    configuration.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      configuration.row_bytes[tile] = 64;
      configuration.rows[tile] = kAmxRows;
    }
    // GCC believes that the instruction reads 8 bytes, and may leave out writing the others.
    __asm__ volatile("" : : "r"(&configuration) : "memory");
    _tile_loadconfig(&configuration);
  }
  ~TileConfiguration() { _tile_release(); }
};

// to [16, 4 vectors] = from + a [16, depth] times one panel. Strides in numbers.
FUSED_LSTM_INLINE void multiply_tile(const BFloat16* a, int64_t a_stride, int64_t depth,
                                     const BFloat16* panel, const float* from, int64_t from_stride,
                                     float* to) {
  constexpr int vector = 16, panel_row = kTileVectors * vector * 2;
  _tile_loadd(0, from, from_stride * 4);
  _tile_loadd(1, from + vector, from_stride * 4);
  _tile_loadd(2, from + 2 * vector, from_stride * 4);
  _tile_loadd(3, from + 3 * vector, from_stride * 4);
  for (int64_t k = 0; k < depth; k += kAmxDepth) {
    _tile_loadd(4, a + k, a_stride * 2);
    const BFloat16* const weights = panel + k / 2 * panel_row;
    _tile_loadd(5, weights, panel_row * 2);
    _tile_loadd(6, weights + 2 * vector, panel_row * 2);
    _tile_loadd(7, weights + 4 * vector, panel_row * 2);
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 6);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, weights + 6 * vector, panel_row * 2);
    _tile_dpbf16ps(3, 4, 5);
  }
  constexpr int64_t to_stride = kTileVectors * vector * 4;
  _tile_stored(0, to, to_stride);
  _tile_stored(1, to + vector, to_stride);
  _tile_stored(2, to + 2 * vector, to_stride);
  _tile_stored(3, to + 3 * vector, to_stride);
}

// Pairs of neighbours as the lanes of a vector: of one row of memory, or of two.
FUSED_LSTM_INLINE Floats pairs_in_row(const BFloat16* from, int64_t count) {
  const int64_t most = 2 * Lanes<Floats>::count;
  return copy_in<Floats>(from, static_cast<int>(count < most ? count : most));
}
FUSED_LSTM_INLINE Floats pairs_of_rows(const BFloat16* first, const BFloat16* second, int count) {
  auto bits = load_bits16<Floats>(first, count);
  if (second) bits |= load_bits16<Floats>(second, count) << 16;
  return bits_as<Floats>(bits);
}

template <>
int64_t panel_size(const Packing<BFloat16Operands>& w) {
  const int64_t depth = w.layout == PanelLayout::plain ? w.rows : w.columns;
  return panel_depth<BFloat16Operands>(depth) * kTileVectors * Lanes<Floats>::count;
}

template <>
void pack(const Packing<BFloat16Operands>& w, int64_t panel, BFloat16* to) {
  to += panel * panel_size(w);
  constexpr int lanes = Lanes<Floats>::count;
  constexpr int64_t row = kTileVectors * lanes * 2;  // numbers of a pair of k
  const auto put = [&](int64_t pair, int v, Floats pairs) {
    __builtin_memcpy(to + pair * row + v * lanes * 2, &pairs, sizeof(pairs));
  };
  if (w.layout == PanelLayout::plain) {
    for (int64_t k = 0; k < panel_depth<BFloat16Operands>(w.rows); k += 2) {
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t first = (panel * kTileVectors + v) * lanes, left = w.columns - first;
        const int count = static_cast<int>(left < 0 ? 0 : left < lanes ? left : lanes);
        const BFloat16* const from = w.data + k * w.columns + first;
        put(k / 2, v,
            k < w.rows ? pairs_of_rows(from, k + 1 < w.rows ? from + w.columns : nullptr, count)
                       : Floats{});
      }
    }
    return;
  }
  for (int v = 0; v < kTileVectors; ++v) {
    const int64_t rows = w.layout == PanelLayout::gates ? w.rows / 4 : w.rows;
    const int64_t skipped = w.layout == PanelLayout::gates ? v * rows : 0;
    const int64_t first =
        w.layout == PanelLayout::gates ? panel * lanes : (panel * kTileVectors + v) * lanes;
    const BFloat16* const from = w.data + (skipped + first) * w.columns;
    for (int64_t k = 0; k < panel_depth<BFloat16Operands>(w.columns); k += kAmxDepth) {
      Floats square[lanes];
      for (int n = 0; n < lanes; ++n) {
        const int64_t left = n < rows - first ? w.columns - k : 0;
        square[n] = pairs_in_row(from + n * w.columns + k, left < 0 ? 0 : left);
      }
      transpose(square);
      for (int n = 0; n < lanes; ++n) put(k / 2 + n, v, square[n]);
    }
  }
}

template <class V>
struct Dot<V, BFloat16, BFloat16> {
  static constexpr int width = 2 * Lanes<V>::count;
  static FUSED_LSTM_INLINE V of_x(const BFloat16* from, int count) {
    return copy_in<V>(from, count);
  }
  static FUSED_LSTM_INLINE V of_w(const BFloat16* from, int count) {
    return copy_in<V>(from, count);
  }
  static FUSED_LSTM_INLINE V add(V sum, V x, V w) {
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
};

// Rows of a gemm's left factor [rows, depth] that a whole tile may read: where they are, or, if
// a tile would read past them, a copy filled up with zeros.
class TileRows {
 public:
  TileRows(const BFloat16* a, int64_t rows, int64_t depth, BFloat16* stage)
      : a_(a), rows_(rows), depth_(depth), stage_(stage) {}
  int64_t depth() const { return panel_depth<BFloat16Operands>(depth_); }
  int64_t stride() const { return stride_; }
  const BFloat16* from(int64_t row) {
    const int64_t height = rows_ - row < kAmxRows ? rows_ - row : kAmxRows;
    stride_ = depth_;
    if (height == kAmxRows && depth_ == depth()) return a_ + row * depth_;
    stride_ = depth();
    if (staged_ != row) {
      staged_ = row;
      __builtin_memset(stage_, 0, kAmxRows * depth() * sizeof(BFloat16));
      for (int64_t r = 0; r < height; ++r) {
        __builtin_memcpy(stage_ + r * depth(), a_ + (row + r) * depth_, depth_ * sizeof(BFloat16));
      }
    }
    return stage_;
  }

 private:
  const BFloat16* a_;
  int64_t rows_, depth_, stride_ = 0, staged_ = -1;
  BFloat16* stage_;  // [16, depth in whole tiles]
};

// c [rows, columns] (+)= a [rows, depth] times the panels of a plain weight, of the columns
// begin .. end; begin is where a panel begins.
template <class V>
void gemm(const BFloat16* a, int64_t depth, const BFloat16* panels, float* c, int64_t columns,
          int64_t begin, int64_t end, int64_t rows, bool accumulate, bool downwards,
          BFloat16* stage) {
  constexpr int64_t width = kTileVectors * Lanes<V>::count;
  const int64_t blocks = (end - begin + width - 1) / width;
  const float zero[width] = {};
  TileRows factor(a, rows, depth, stage);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = begin + (downwards ? blocks - 1 - i : i) * width;
    const int64_t last = first + width < end ? first + width : end;
    for (int64_t row = 0; row < rows; row += kAmxRows) {
      alignas(64) float sums[kAmxRows * width];
      const BFloat16* const from = factor.from(row);
      multiply_tile(from, factor.stride(), factor.depth(), panels + first * factor.depth(), zero, 0,
                    sums);
      for (int64_t r = 0; r < kAmxRows && row + r < rows; ++r) {
        float* const to = c + (row + r) * columns;
        for_vectors<V>(first, last, [&](int64_t j, int count) {
          const V sum = load<V>(sums + r * width + j - first, count);
          store<V>(to + j, accumulate ? load<V>(to + j, count) + sum : sum, count);
        });
      }
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace fused_lstm
