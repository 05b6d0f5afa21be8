// AMX tiles in plain C++, in the place of the compiler's intrinsics, so that isa_amx.cpp runs on a
// processor that has AVX512-BF16 and AVX512-VNNI alone.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace amx_tiles {

struct alignas(64) Tile {
  uint8_t rows[16][64];
};
inline thread_local Tile tiles[8];

inline void load(int tile, const void* from, int64_t stride) {
  for (int row = 0; row < 16; ++row) {
    std::memcpy(tiles[tile].rows[row], static_cast<const char*>(from) + row * stride, 64);
  }
}
inline void store(int tile, void* to, int64_t stride) {
  for (int row = 0; row < 16; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile].rows[row], 64);
  }
}
inline void zero(int tile) { tiles[tile] = {}; }

// sum [16, 16] of four bytes each += dot(a [16, 16], b [16, 16]) of the four bytes in each place.
template <class Sum, class Dot>
void multiply(int sum, int a, int b, const Dot& dot) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      Sum value;
      std::memcpy(&value, &tiles[sum].rows[m][4 * n], 4);
      for (int k = 0; k < 16; ++k) {
        value = dot(value, &tiles[a].rows[m][4 * k], &tiles[b].rows[k][4 * n]);
      }
      std::memcpy(&tiles[sum].rows[m][4 * n], &value, 4);
    }
  }
}
inline float bfloat16(const uint8_t* bytes) {
  const uint32_t bits = static_cast<uint32_t>(bytes[0]) << 16 | static_cast<uint32_t>(bytes[1])
                                                                    << 24;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void multiply_bf16(int sum, int a, int b) {
  multiply<float>(sum, a, b, [](float value, const uint8_t* x, const uint8_t* w) {
    return value + bfloat16(x) * bfloat16(w) + bfloat16(x + 2) * bfloat16(w + 2);
  });
}
inline void multiply_u8_s8(int sum, int a, int b) {
  multiply<int32_t>(sum, a, b, [](int32_t value, const uint8_t* x, const uint8_t* w) {
    for (int i = 0; i < 4; ++i) value += x[i] * static_cast<int8_t>(w[i]);
    return value;
  });
}

}  // namespace amx_tiles

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig(configuration) ((void)(configuration))
#define _tile_release() ((void)0)
#define _tile_loadd(tile, from, stride) amx_tiles::load(tile, from, stride)
#define _tile_stored(tile, to, stride) amx_tiles::store(tile, to, stride)
#define _tile_zero(tile) amx_tiles::zero(tile)
#define _tile_dpbf16ps(sum, a, b) amx_tiles::multiply_bf16(sum, a, b)
#define _tile_dpbusd(sum, a, b) amx_tiles::multiply_u8_s8(sum, a, b)
