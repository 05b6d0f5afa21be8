// One warp's GEMM of a tile of weights with a tile of the operand, for each element type. A
// tile of weights has 16 rows and 32 bytes of depth; thread `lane` of the warp holds 16 bytes of
// it, a fragment. Free of torch.
//
// Which elements of the depth meet in which instruction is free as long as weights and operand
// agree. So a thread takes neighbours of the operand, 8 or 16 bytes in one access.
#pragma once

#include "cuda/ptx.h"
#include "plan/placement.h"

namespace fused_lstm {
namespace cuda {
namespace {

struct alignas(16) Fragment {
  uint32_t word[4];
};

// Where a word of a fragment lies in its tile.
struct WordPlace {
  int row, word;  // word: of the 8 of a row
};

using Words = uint32_t[4];
using OperandWords = uint32_t[2];
__device__ __forceinline__ void multiply_tile(Half, float (&sums)[4], const Words& weights,
                                              const OperandWords& operand) {
  multiply_half(sums, weights, operand);
}
__device__ __forceinline__ void multiply_tile(BFloat16, float (&sums)[4], const Words& weights,
                                              const OperandWords& operand) {
  multiply_bfloat16(sums, weights, operand);
}
__device__ __forceinline__ void multiply_tile(float, float (&sums)[4], const Words& weights,
                                              const OperandWords& operand) {
  multiply_tf32(sums, weights, operand);
}

// Tensor cores: mma's fragments. Sums: rows lane / 4 and lane / 4 + 8, sequences 2 (lane % 4) +
// 0, 1.
template <class Types_>
struct TensorTile {
  using Types = Types_;
  using Element = typename Types::Operand;  // what operand and weights are made of
  using Sums = float[4];
  static constexpr int resident = resident_fragments(/*tensor_cores=*/true);

  static __device__ Element number(typename Types::Storage x) {
    if constexpr (sizeof(Element) == 4) {
      return to_tf32(x);
    } else {
      return x;
    }
  }

  static __device__ WordPlace place(int lane, int word) {
    return {lane / 4 + 8 * (word & 1), 2 * (lane % 4) + (word >> 1)};
  }

  // operand: of 8 sequences, `stride` bytes apart, at the tile's depth.
  static __device__ __forceinline__ void multiply(Sums& sums, const Fragment& weights,
                                                  const char* operand, int stride, int lane) {
    const uint2 read =
        *reinterpret_cast<const uint2*>(operand + lane / 4 * stride + 8 * (lane % 4));
    multiply_tile(Element{}, sums, weights.word, {read.x, read.y});
  }

  // to: the sums of the tile's rows of 8 sequences, `stride` bytes apart.
  static __device__ __forceinline__ void store(const Sums& sums, char* to, int stride, int lane) {
    for (int i = 0; i < 4; ++i) {
      char* const sequence = to + (2 * (lane % 4) + (i & 1)) * stride;
      reinterpret_cast<float*>(sequence)[lane / 4 + 8 * (i >> 1)] = sums[i];
    }
  }
};

// Plain float32: a thread has one row, and every other four elements of its depth. Sums: of 8
// sequences, over that part of the depth.
struct ScalarTile {
  using Types = fused_lstm::Types<float, float, float>;
  using Element = float;
  using Sums = float[kTileSequences];
  static constexpr int resident = resident_fragments(/*tensor_cores=*/false);

  static __device__ Element number(float x) { return x; }

  static __device__ WordPlace place(int lane, int word) {
    return {lane % kTileRows, 4 * (lane / kTileRows) + word};
  }

  static __device__ __forceinline__ void multiply(Sums& sums, const Fragment& weights,
                                                  const char* operand, int stride, int lane) {
    for (int n = 0; n < kTileSequences; ++n) {
      const float4 h =
          *reinterpret_cast<const float4*>(operand + n * stride + 16 * (lane / kTileRows));
      sums[n] += bits_as<float>(weights.word[0]) * h.x;
      sums[n] += bits_as<float>(weights.word[1]) * h.y;
      sums[n] += bits_as<float>(weights.word[2]) * h.z;
      sums[n] += bits_as<float>(weights.word[3]) * h.w;
    }
  }

  static __device__ __forceinline__ void store(const Sums& sums, char* to, int stride, int lane) {
    for (int n = 0; n < kTileSequences; ++n) {
      const float sum = sums[n] + __shfl_xor_sync(0xffffffff, sums[n], kTileRows);
      if (lane < kTileRows) reinterpret_cast<float*>(to + n * stride)[lane] = sum;
    }
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
