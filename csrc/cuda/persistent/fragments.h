// The recurrent weights of one warp, as fragments of mma.h: the first ones in registers, the others
// in shared memory. Free of torch.
#pragma once

#include "cuda/persistent/mma.h"

namespace fused_lstm {
namespace cuda {
namespace {

template <class Mma, int kRowTiles, int kDepthTiles, int kResident>
class Fragments {
  using Fragment = typename Mma::Fragment;
  using Storage = typename Mma::Storage;
  static constexpr int kAll = kRowTiles * kDepthTiles;
  static constexpr int kVectors = Mma::kWords / 4;  // of 16 bytes in a fragment

 public:
  // spilled: shared [kAll - kResident, kVectors, threads] uint4.
  __device__ __forceinline__ explicit Fragments(char* spilled)
      : spilled_(reinterpret_cast<uint4*>(spilled) + threadIdx.x) {}

  // elements(row, depth, e): sets e to the kLaneElements elements from `depth` on of row `row` of
  // the warp's kRowTiles row tiles; zero outside the matrix.
  template <class Elements>
  __device__ __forceinline__ void gather(const Elements& elements) {
    const int g = threadIdx.x % kWarpThreads / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int f = 0; f < kAll; ++f) {
      const int tile = f / kRowTiles, row = f % kRowTiles * kTileRows + g;
      const int depth =
          (kSequenceBytes * (tile / 2) + 16 * q + 8 * (tile % 2)) / Mma::kElementBytes;
      Storage first[Mma::kLaneElements], second[Mma::kLaneElements];
      if (f % 4 == 3) __syncwarp();  // no more loads in flight than there are registers
      elements(row, depth, first);
      elements(row + 8, depth, second);
      const Fragment fragment = Mma::fragment(first, second);
      if (f < kResident) {
        resident_[f] = fragment;
        continue;
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        spilled_[((f - kResident) * kVectors + v) * kBlockThreads] =
            make_uint4(fragment.word[4 * v], fragment.word[4 * v + 1], fragment.word[4 * v + 2],
                       fragment.word[4 * v + 3]);
      }
    }
  }

  // sums[r] += the weights of row tile r and depth tile `tile` times the operand.
  template <int kSums>
  __device__ __forceinline__ void multiply(float (&sums)[kSums][4], int tile, uint32_t operand_0,
                                           uint32_t operand_1) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const int f = tile * kRowTiles + r;
      if (f < kResident) {
        Mma::multiply(sums[r], resident_[f], operand_0, operand_1);
        continue;
      }
      Fragment fragment;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const uint4 words = spilled_[((f - kResident) * kVectors + v) * kBlockThreads];
        fragment.word[4 * v] = words.x;
        fragment.word[4 * v + 1] = words.y;
        fragment.word[4 * v + 2] = words.z;
        fragment.word[4 * v + 3] = words.w;
      }
      Mma::multiply(sums[r], fragment, operand_0, operand_1);
    }
  }

 private:
  Fragment resident_[kResident];
  uint4* spilled_;
};

// `count` neighbours of a row of a matrix, from column `column` of `columns` on; zero past its end.
template <class Storage, int count>
__device__ __forceinline__ void load_neighbours(const Storage* row, int column, int columns,
                                                Storage (&elements)[count]) {
#pragma unroll
  for (int e = 0; e < count; ++e) {
    elements[e] = column + e < columns ? row[column + e] : Storage{};
  }
}

// The same in one access: rows begin and end at multiples of 8 bytes.
template <class Storage, int count>
__device__ __forceinline__ void load_vector(const Storage* row, int column, int columns,
                                            Storage (&elements)[count]) {
  static_assert(count * sizeof(Storage) == 8, "one access of 8 bytes");
  uint2 words = make_uint2(0, 0);
  if (column < columns) words = *reinterpret_cast<const uint2*>(row + column);
  const uint32_t both[2] = {words.x, words.y};
#pragma unroll
  for (int e = 0; e < count; ++e) {
    if constexpr (sizeof(Storage) == 2) {
      elements[e].bits = static_cast<uint16_t>(both[e / 2] >> (16 * (e % 2)));
    } else {
      elements[e] = __uint_as_float(both[e]);
    }
  }
}
template <class Storage>
__device__ __forceinline__ bool takes_vectors(const Storage* matrix, int columns) {
  return columns * sizeof(Storage) % 8 == 0 && reinterpret_cast<uintptr_t>(matrix) % 8 == 0;
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
