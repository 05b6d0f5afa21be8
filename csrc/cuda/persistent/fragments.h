// The recurrent weights of one warp, as fragments of mma.h: the first ones in registers, the others
// in shared memory. Free of torch.
#pragma once

#include "cuda/persistent/mma.h"
#include "cuda/persistent/rows.h"

namespace fused_lstm {
namespace cuda {
namespace {

// Of rows that can be in any order within the warp's row tiles, a lane gets neighbours: two of each
// tile, or, where there are pairs of tiles, four of each pair. So what it loads of them, or stores
// of their sums, are vectors.
template <int kRowTiles>
constexpr int kNeighbourTiles = kRowTiles % 2 == 0 ? 2 : 1;

// The row that is row g (half 0) or g + 8 (half 1) of the lane in row tile `tile`.
template <int kRowTiles>
__device__ __forceinline__ int neighbour_row(int tile, int half) {
  constexpr int tiles = kNeighbourTiles<kRowTiles>;
  const int g = threadIdx.x % kWarpThreads / 4;
  return tile / tiles * tiles * kTileRows + 2 * tiles * g + 2 * (tile % tiles) + half;
}

// Whether vectors of `bytes` can be loaded from the rows of a matrix.
template <class Storage>
__device__ __forceinline__ bool takes_vectors(const Storage* matrix, int columns, int bytes) {
  return columns * sizeof(Storage) % bytes == 0 && reinterpret_cast<uintptr_t>(matrix) % bytes == 0;
}

// A vector of `kWords` words of a row of a matrix, from column `column` of `columns` on; zero past
// its end. kVectors: whether the matrix takes_vectors of this size.
template <bool kVectors, int kWords, class Storage>
__device__ __forceinline__ void load_vector(const Storage* row, int column, int columns,
                                            uint32_t* words) {
  const Storage* const from = row + column;
  if constexpr (kVectors) {
    load_words_if<kWords>(column < columns, from, words);
  } else {
    constexpr int each = 4 / sizeof(Storage);  // elements of a word
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = 0;
#pragma unroll
      for (int e = 0; e < each; ++e) {
        const int at = each * i + e;
        const Storage x = load_if(column + at < columns, from + at);
        if constexpr (each == 2) {
          words[i] |= static_cast<uint32_t>(x.bits) << (16 * e);
        } else {
          words[i] = __float_as_uint(x);
        }
      }
    }
  }
}

template <class Mma, int kRowTiles, int kDepthTiles, int kResident>
class Fragments {
  using Fragment = typename Mma::Fragment;
  using Storage = typename Mma::Storage;
  static constexpr int kAll = kRowTiles * kDepthTiles;
  static constexpr int kParts = Mma::kWords / 4;  // of 16 bytes, in a fragment
  // Registers that loads in flight may have, with their addresses, and those of a vector of
  // `words`.
  static constexpr int kLoadRegisters = kResident > 24 || Mma::kSplit ? 48 : 72;
  template <bool kVectors, int words>
  static constexpr int kVectorRegisters = 2 + words * (kVectors ? 1 : 4 / Mma::kElementBytes);

 public:
  // spilled: shared [kAll - kResident, kParts, threads] uint4.
  __device__ __forceinline__ explicit Fragments(char* spilled)
      : spilled_(reinterpret_cast<uint4*>(spilled) + threadIdx.x) {}

  // From a matrix whose rows go along the depth. vector(tile, half, depth, words) sets 4 words to
  // the 16 bytes from `depth` on of row g (half 0) or g + 8 (half 1) of the lane in row tile
  // `tile`; zero outside the matrix. kVectors: whether it loads them at once.
  template <bool kVectors, class Vector>
  __device__ __forceinline__ void gather(const Vector& vector) {
    take_steps<PairOfDepths, kVectorRegisters<kVectors, 4>>(
        [&](int step, uint32_t (&words)[8]) {
          const int depth = kSequenceBytes * (step / kRowTiles) + 16 * (threadIdx.x % 4);
          vector(step % kRowTiles, 0, depth / Mma::kElementBytes, words);
          vector(step % kRowTiles, 1, depth / Mma::kElementBytes, words + 4);
        },
        [&](int i, const uint32_t (&words)[8]) {
          return Mma::fragment(make_uint2(words[2 * i], words[2 * i + 1]),
                               make_uint2(words[4 + 2 * i], words[4 + 2 * i + 1]));
        });
  }

  // From a matrix whose columns go along the depth. vector(tile, depth, words) sets kColumnWords
  // words to the element `depth` of the lane's neighbours in the kNeighbourTiles row tiles from
  // `tile` on.
  static constexpr int kColumnWords = 2 * kNeighbourTiles<kRowTiles> * Mma::kElementBytes / 4;
  template <bool kVectors, class Vector>
  __device__ __forceinline__ void gather_columns(const Vector& vector) {
    constexpr int all = Mma::kLaneElements * kColumnWords;
    take_steps<Neighbours, kVectorRegisters<kVectors, kColumnWords>>(
        [&](int step, uint32_t (&words)[all]) {
          const int tile = Neighbours::first(step) / kRowTiles;
          const int depth =
              (kSequenceBytes * (tile / 2) + 16 * (threadIdx.x % 4) + 8 * (tile % 2)) /
              Mma::kElementBytes;
#pragma unroll
          for (int e = 0; e < Mma::kLaneElements; ++e) {
            vector(Neighbours::first(step) % kRowTiles, depth + e, words + e * kColumnWords);
          }
        },
        [&](int i, const uint32_t (&words)[all]) {
          uint2 row[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if constexpr (Mma::kElementBytes == 2) {  // words of two rows to words of two elements
              const int selector = half ? 0x7632 : 0x5410;
              row[half] = make_uint2(
                  __byte_perm(words[i], words[kColumnWords + i], selector),
                  __byte_perm(words[2 * kColumnWords + i], words[3 * kColumnWords + i], selector));
            } else {
              row[half] = make_uint2(words[2 * i + half], words[kColumnWords + 2 * i + half]);
            }
          }
          return Mma::fragment(row[0], row[1]);
        });
  }

  // From packed_fragments.h, those of block `member` of the block group.
  __device__ __forceinline__ void load(const uint4* packed, int member) {
    const int warp = member * kBlockWarps + threadIdx.x / kWarpThreads;
    const uint4* const from = packed + warp * kAll * kWarpThreads + threadIdx.x % kWarpThreads;
    take_steps<Single, kVectorRegisters<true, 4>>(
        [&](int step, uint32_t (&words)[4]) {
          load_words_if<4>(true, from + step * kWarpThreads, words);
        },
        [&](int, const uint32_t (&words)[4]) {
          return Mma::fragment(make_uint2(words[0], words[1]), make_uint2(words[2], words[3]));
        });
  }

  // sums[r] += the weights of row tile first + r, if there is one, and depth tile `tile` times the
  // operand.
  template <int kSums>
  __device__ __forceinline__ void multiply(float (&sums)[kSums][4], int tile, uint32_t operand_0,
                                           uint32_t operand_1, int first = 0) const {
    multiply(reinterpret_cast<float (&)[1][kSums][4]>(sums), tile, {{operand_0, operand_1}}, first);
  }
  // Likewise of several tiles of sequences.
  template <int kSequenceTiles, int kSums>
  __device__ __forceinline__ void multiply(float (&sums)[kSequenceTiles][kSums][4], int tile,
                                           const uint32_t (&operands)[kSequenceTiles][2],
                                           int first = 0) const {
#pragma unroll
    for (int r = 0; r < kSums && first + r < kRowTiles; ++r) {
      const int f = tile * kRowTiles + first + r;
      Fragment fragment;
      if (f < kResident) {
        fragment = resident_[f];
      } else {
#pragma unroll
        for (int v = 0; v < kParts; ++v) {
          const uint4 words = spilled_[((f - kResident) * kParts + v) * kBlockThreads];
          fragment.word[4 * v] = words.x;
          fragment.word[4 * v + 1] = words.y;
          fragment.word[4 * v + 2] = words.z;
          fragment.word[4 * v + 3] = words.w;
        }
      }
#pragma unroll
      for (int s = 0; s < kSequenceTiles; ++s) {
        Mma::multiply(sums[s][r], fragment, operands[s][0], operands[s][1]);
      }
    }
  }

 private:
  // What a step of a gather loads: a row tile and two depth tiles, or neighbouring row tiles and a
  // depth tile; and of packed ones, one. Of kFragments, the i-th is first(step) + i kStride.
  struct PairOfDepths {
    static constexpr int kFragments = 2, kStride = kRowTiles, kLoads = 2, kWords = 8;
    static FUSED_LSTM_INLINE constexpr int first(int step) {
      return step / kRowTiles * 2 * kRowTiles + step % kRowTiles;
    }
  };
  struct Neighbours {
    static constexpr int kFragments = kNeighbourTiles<kRowTiles>, kStride = 1,
                         kLoads = Mma::kLaneElements,
                         kWords = kLoads * 2 * kFragments * Mma::kElementBytes / 4;
    static FUSED_LSTM_INLINE constexpr int first(int step) { return step * kFragments; }
  };
  struct Single {
    static constexpr int kFragments = 1, kStride = 1, kLoads = 1, kWords = 4;
    static FUSED_LSTM_INLINE constexpr int first(int step) { return step; }
  };
  // The steps up to the last one that has a resident fragment.
  template <class Steps>
  static FUSED_LSTM_INLINE constexpr int resident_steps() {
    int steps = 0;
    while (steps < kAll / Steps::kFragments && Steps::first(steps) < kResident) ++steps;
    return steps;
  }

  // load(step, words) loads, fragment(i, words) is then the step's i-th fragment. As many loads are
  // in flight at once as there are registers.
  template <class Steps, int kRegisters, class Load, class MakeFragment>
  __device__ __forceinline__ void take_steps(const Load& load, const MakeFragment& fragment) {
    constexpr int steps = kAll / Steps::kFragments, resident = resident_steps<Steps>();
    constexpr int registers = Steps::kLoads * kRegisters;
    constexpr int at_once = registers < kLoadRegisters ? kLoadRegisters / registers : 1;
    constexpr int rolled = (steps - resident) / at_once * at_once, unrolled = steps - rolled;
#pragma unroll 1
    for (int from = unrolled; from < steps; from += at_once) {
      uint32_t words[at_once][Steps::kWords];
#pragma unroll
      for (int i = 0; i < at_once; ++i) load(from + i, words[i]);
#pragma unroll
      for (int i = 0; i < at_once * Steps::kFragments; ++i) {
        const int step = i / Steps::kFragments, its = i % Steps::kFragments;
        spill(Steps::first(from + step) + its * Steps::kStride, fragment(its, words[step]));
      }
    }
#pragma unroll
    for (int from = 0; from < unrolled; from += at_once) {
      uint32_t words[at_once][Steps::kWords];
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        if (from + i < unrolled) load(from + i, words[i]);
      }
#pragma unroll
      for (int i = 0; i < at_once * Steps::kFragments; ++i) {
        const int step = i / Steps::kFragments, its = i % Steps::kFragments;
        if (from + step >= unrolled) continue;
        const int f = Steps::first(from + step) + its * Steps::kStride;
        if (f < kResident) {
          resident_[f] = fragment(its, words[step]);
        } else {
          spill(f, fragment(its, words[step]));
        }
      }
      __syncwarp();  // keeps later loads behind
    }
  }

  __device__ __forceinline__ void spill(int f, const Fragment& fragment) {
#pragma unroll
    for (int v = 0; v < kParts; ++v) {
      spilled_[((f - kResident) * kParts + v) * kBlockThreads] =
          make_uint4(fragment.word[4 * v], fragment.word[4 * v + 1], fragment.word[4 * v + 2],
                     fragment.word[4 * v + 3]);
    }
  }

  Fragment resident_[kResident];
  uint4* spilled_;
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
