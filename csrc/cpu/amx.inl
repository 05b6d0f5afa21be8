// GEMM in AMX tiles: of bfloat16 operands, accumulated in float32, what gemm.inl has for the other
// types; and of 8-bit integers. Intel's Architecture Instruction Set Extensions Programming
// Reference, chapter 3.
//
//   a panel [depth / 2, 4 vectors, 16 lanes, 2]: pairs of k, depth padded with zeros to 32
//
//                        tile 5, 6, 7, 5: 16 pairs of k of one vector of the panel
//                          | k0 k1 | k0 k1 | ..   16 columns
//                          | k2 k3 | k2 k3 | ..
//     tile 4: 16 rows of a
//       | k0 k1 k2 .. k31 |  ->  tiles 0 .. 3: 16 rows of the four vectors' sums, float32
//         :
//
// A tile always has 16 rows. Where fewer are left, the others are computed from the memory that
// follows, which must be readable, and ignored.
#pragma once

#include "cpu/bf16.inl"
#include "cpu/int8.inl"

namespace fused_lstm::cpu {
namespace {

// For its lifetime, this thread's tiles are 16 rows of 64 bytes.
template <>
class TileConfiguration<true> {
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

// to [16, 4 vectors] = start [16, 4 vectors] + a [16, depth] times one panel. Strides in elements.
FUSED_LSTM_INLINE void multiply_amx(const BFloat16* a, int64_t a_stride, int64_t depth,
                                    const BFloat16* panel, const float* start, int64_t start_stride,
                                    float* to) {
  constexpr int vector = 16, panel_row = kTileVectors * vector * 2;
  _tile_loadd(0, start, start_stride * 4);
  _tile_loadd(1, start + vector, start_stride * 4);
  _tile_loadd(2, start + 2 * vector, start_stride * 4);
  _tile_loadd(3, start + 3 * vector, start_stride * 4);
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

// The same of 8-bit integers: four k in the place of a pair, sums of int32. So few rows that a tile
// would be mostly empty are multiplied by VNNI, which reads the same panel and the same rows.
constexpr int kVnniRows = 2;

FUSED_LSTM_INLINE void multiply_int8_amx(const Int8* const* x, int64_t x_stride, int64_t height,
                                         int64_t depth, const Int8* panel, const float* start,
                                         int64_t start_stride, float* to) {
  if (height <= kVnniRows) {
    return with_constant<kVnniRows>(height, [&](auto rows) {
      multiply_panel_int8<decltype(rows)::value>(x, depth, panel, start, start_stride, to);
    });
  }
  constexpr int vector = 64, panel_row = kTileVectors * vector, step = 64;  // bytes; of depth
  const int64_t padded = panel_depth<FrozenInt8>(depth);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < padded; k += step) {
    _tile_loadd(4, x[0] + k, x_stride);
    const Int8* const weights = panel + k / 4 * panel_row;
    _tile_loadd(5, weights, panel_row);
    _tile_loadd(6, weights + vector, panel_row);
    _tile_loadd(7, weights + 2 * vector, panel_row);
    _tile_dpbusd(0, 4, 5);
    _tile_dpbusd(1, 4, 6);
    _tile_dpbusd(2, 4, 7);
    _tile_loadd(5, weights + 3 * vector, panel_row);
    _tile_dpbusd(3, 4, 5);
  }
  alignas(64) Ints sums[kAmxRows][kTileVectors];
  _tile_stored(0, &sums[0][0], sizeof(sums[0]));
  _tile_stored(1, &sums[0][1], sizeof(sums[0]));
  _tile_stored(2, &sums[0][2], sizeof(sums[0]));
  _tile_stored(3, &sums[0][3], sizeof(sums[0]));
  constexpr int64_t width = kTileVectors * Lanes<Floats>::count;
  for (int64_t r = 0; r < height; ++r) {
    scale_sums(sums[r], row_scale(x[r], depth), panel + padded * width, start + r * start_stride,
               to + r * width);
  }
}

// Tiles of a are read in place, or, where they would read past its end, from a padded copy in
// stage [16, panel_depth].
template <>
void gemm(const BFloat16* a, int64_t depth, const Weight<BFloat16Operands>& weight, float* c,
          int64_t columns, int64_t begin, int64_t end, int64_t rows, bool accumulate,
          bool descending, BFloat16* stage) {
  constexpr int64_t width = kTileVectors * Lanes<Floats>::count;
  const float zero[width] = {};
  const int64_t padded = panel_depth<BFloat16Operands>(depth);
  const int64_t panels = (end - begin + width - 1) / width;
  int64_t staged = -1;  // the first row of what stage holds
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t first = begin + (descending ? panels - 1 - i : i) * width;
    const int64_t last = first + width < end ? first + width : end;
    Blocks(rows, kAmxRows, 1).for_each([&](int64_t row, int64_t height) {
      const bool in_place = height == kAmxRows && depth == padded;
      if (!in_place && staged != row) {
        staged = row;
        __builtin_memset(stage, 0, kAmxRows * padded * sizeof(BFloat16));
        for (int64_t r = 0; r < height; ++r) {
          __builtin_memcpy(stage + r * padded, a + (row + r) * depth, depth * sizeof(BFloat16));
        }
      }
      alignas(64) float sums[kAmxRows * width];
      multiply_amx(in_place ? a + row * depth : stage, padded, padded,
                   weight.panels + first * padded, zero, 0, sums);
      for (int64_t r = 0; r < height; ++r) {
        float* const to = c + (row + r) * columns;
        for_vectors<Floats>(first, last, [&](int64_t j, int count) {
          const Floats sum = load<Floats>(sums + r * width + j - first, count);
          store<Floats>(to + j, accumulate ? load<Floats>(to + j, count) + sum : sum, count);
        });
      }
    });
  }
}

// `times` products of two tiles for each of four sums, for the plan's figure.
constexpr int64_t kAmxProbeFlops = 4 * 2 * kAmxRows * 16 * kAmxDepth;
float probe_amx(int64_t times) {
  const TileConfiguration<true> tiles;
  for (int64_t i = 0; i < times; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 6);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 4, 5);
  }
  return 0;
}

}  // namespace
}  // namespace fused_lstm::cpu
