// The matrix instruction of each element type, and what its operands are made of. Free of torch.
//
// One instruction: sums [16 rows, 8 sequences] += weights [16, depth tile] operand [depth tile, 8].
// A depth tile is 32 bytes: 16 elements of 16 bits, 8 of float32. Of a tile, lane (g, q) = (lane /
// 4, lane % 4) of the warp holds
//
//   weights   rows g and g + 8, 8 bytes of depth each          words row g: 0, 2; row g + 8: 1, 3
//   operand   sequence g, the same 8 bytes of depth            words 0, 1
//   sums      rows g (0, 1) and g + 8 (2, 3), sequences 2 q and 2 q + 1
//
// Which element of the depth is multiplied by which lane is free as long as weights and operand
// agree: lane q of tile t has bytes 64 (t / 2) + 16 q + 8 (t % 2) onwards, so that it reads 16
// bytes of the operand for two tiles.
//
//   operand [depth / 64 bytes, 8 sequences, 64 bytes]: 512 bytes for two tiles, 16 for each lane
#pragma once

#include "cuda/ptx.h"
#include "cuda/types.h"
#include "plan/placement.h"

namespace fused_lstm {
namespace cuda {
namespace {

constexpr int kPairBytes = 512;     // of the operand of two depth tiles
constexpr int kSequenceBytes = 64;  // of one sequence in it
constexpr uint32_t kFullMask = 0xffffffff;

// Bytes of element `element` of sequence `sequence` in an operand.
__device__ __forceinline__ int operand_offset(int element, int sequence, int element_bytes) {
  const int bytes = element * element_bytes;
  return bytes / kSequenceBytes * kPairBytes + sequence * kSequenceBytes + bytes % kSequenceBytes;
}

template <class Storage>
__device__ __forceinline__ Storage rounded(float x) {
  Storage result;
  store<float>(&result, x, 1);
  return result;
}
template <class Storage>
__device__ __forceinline__ float widened(Storage x) {
  return load<float>(&x, 1);
}

// kFactors: of a float32 product, 1 (in TF32) or 3. A float32 is a sum of two TF32 numbers but for
// its last bits: x y = x_1 y_1 + x_1 y_2 + x_2 y_1, off by a relative 2^-20 at most.
template <class Types_, int kFactors>
struct Mma {
  using Types = Types_;
  using Storage = typename Types::Storage;
  static constexpr int kElementBytes = sizeof(Storage);
  static constexpr int kTileElements = kDepthBytes / kElementBytes;
  static constexpr int kLaneElements = 8 / kElementBytes;  // of a tile and row
  static constexpr bool kSplit = kFactors == 3;
  static constexpr int kWords = kSplit ? 8 : 4;  // of a fragment, a lane's part of a weight tile

  struct Fragment {
    uint32_t word[kWords];
  };

  // What the instruction multiplies for an element: its bits, in the low half if it has 16.
  static __device__ __forceinline__ uint32_t bits(Storage x) {
    if constexpr (kElementBytes == 2) {
      return x.bits;
    } else {
      return __float_as_uint(kSplit ? x : to_tf32(x));
    }
  }

  // An element as it is stored, in the low half if it has 16 bits.
  static __device__ __forceinline__ uint32_t stored(Storage x) {
    if constexpr (kElementBytes == 2) {
      return x.bits;
    } else {
      return __float_as_uint(x);
    }
  }
  // What the instruction multiplies for a word as it is stored.
  static __device__ __forceinline__ uint32_t word(uint32_t its) {
    if constexpr (kElementBytes == 2) {
      return its;
    } else {
      return bits(__uint_as_float(its));
    }
  }

  // Fragment of the lane's 8 bytes of rows g (first) and g + 8 (second), as they are stored.
  static __device__ __forceinline__ Fragment fragment(uint2 first, uint2 second) {
    Fragment f = {};
    const uint32_t stored[4] = {first.x, second.x, first.y, second.y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kElementBytes == 2) {
        f.word[i] = stored[i];
      } else {
        const float x = __uint_as_float(stored[i]), high = to_tf32(x);
        f.word[i] = __float_as_uint(high);
        if constexpr (kSplit) f.word[4 + i] = __float_as_uint(x - high);
      }
    }
    return f;
  }

  static __device__ __forceinline__ void multiply(float (&sums)[4], const Fragment& weights,
                                                  uint32_t operand_0, uint32_t operand_1) {
    const uint32_t operand[2] = {operand_0, operand_1};
    const uint32_t high[4] = {weights.word[0], weights.word[1], weights.word[2], weights.word[3]};
    if constexpr (kSplit) {
      constexpr uint32_t tf32_bits = 0xffffe000;
      const uint32_t low[4] = {weights.word[4], weights.word[5], weights.word[6], weights.word[7]};
      const uint32_t truncated[2] = {operand_0 & tf32_bits, operand_1 & tf32_bits};
      const uint32_t rest[2] = {
          __float_as_uint(__uint_as_float(operand_0) - __uint_as_float(truncated[0])),
          __float_as_uint(__uint_as_float(operand_1) - __uint_as_float(truncated[1]))};
      multiply_tf32(sums, low, truncated);
      multiply_tf32(sums, high, rest);
      multiply_tf32(sums, high, truncated);
    } else if constexpr (kElementBytes == 4) {
      multiply_tf32(sums, high, operand);
    } else {
      multiply_16(Storage{}, sums, high, operand);
    }
  }

 private:
  static __device__ __forceinline__ void multiply_16(Half, float (&sums)[4],
                                                     const uint32_t (&weights)[4],
                                                     const uint32_t (&operand)[2]) {
    multiply_half(sums, weights, operand);
  }
  static __device__ __forceinline__ void multiply_16(BFloat16, float (&sums)[4],
                                                     const uint32_t (&weights)[4],
                                                     const uint32_t (&operand)[2]) {
    multiply_bfloat16(sums, weights, operand);
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
