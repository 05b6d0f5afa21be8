// What the grid's forward kernels multiply: rows of weights, and a lane's part of the operand, from
// the exchange or, where a sequence or an episode begins, from the initial state. Free of torch.
#pragma once

#include <type_traits>

#include "cuda/persistent/exchange.h"
#include "cuda/persistent/fragments.h"
#include "cuda/persistent/params.h"

namespace fused_lstm {
namespace cuda {
namespace {

// The weights of block `member`: row 4 unit + gate of its units, an eighth of the depth each warp.
template <class Mma, int kRowTiles, int kDepthTiles, int kResident>
__device__ __forceinline__ void gather_units(
    const PersistentForwardParams<typename Mma::Types>& params, int direction, int member,
    Fragments<Mma, kRowTiles, kDepthTiles, kResident>& weights) {
  const auto* const weight_hh = params.weight_hh[direction];
  const int H = static_cast<int>(params.layer[direction].hidden_size);
  const int first_unit = member * kRowTiles * kTileUnits;
  const int first_depth = threadIdx.x / kWarpThreads * kDepthTiles * Mma::kTileElements;
  const auto gather = [&](auto vectors) {
    constexpr bool kVectors = decltype(vectors)::value;
    weights.template gather<kVectors>([&](int tile, int half, int depth, uint32_t* words) {
      const int row = neighbour_row<kRowTiles>(tile, half), unit = first_unit + row / kGates;
      load_vector<kVectors, 4>(element_at(weight_hh, row % kGates * H + unit, H, 0),
                               first_depth + depth, unit < H ? H : 0, words);
    });
  };
  if (params.fragments[direction]) {
    weights.load(params.fragments[direction], member);
  } else if (takes_vectors(weight_hh, H, 16)) {
    gather(std::true_type{});
  } else {
    gather(std::false_type{});
  }
}

// The vectors of the operand that a lane multiplies, each of one sequence and a pair of depth
// tiles.
template <class Mma, int kDepthTiles>
class LaneOperand {
  static constexpr int kPairs = kDepthTiles / 2;
  static constexpr int kLaneElements = 16 / Mma::kElementBytes;  // of a vector

 public:
  // units: of the layer, as blocks send them.
  __device__ __forceinline__ LaneOperand(const ForwardParams<typename Mma::Types>& p, int units)
      : h_0_(p.h_0),
        H_(in_register(static_cast<int>(p.hidden_size))),
        in_vectors_(takes_vectors(p.h_0, H_, 16)) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int vector = pair_group(pair) * kWarpThreads + threadIdx.x % kWarpThreads;
      const int first_of_sequence = threadIdx.x % kWarpThreads / 4 * 4;
      at[pair] = in_register(element(pair) < units ? vector : first_of_sequence);
    }
  }

  // Where they are in the exchange of 8 sequences. Those that no block sends, past the last unit,
  // meet weights of zero: the lane reads the first ones of its sequence instead.
  int at[kPairs];

  // One of them from the initial state of sequence b of B.
  __device__ __forceinline__ uint4 initial(int pair, int b, int B) const {
    uint32_t words[4] = {};
    if (h_0_ && in_vectors_) {
      load_vector<true, 4>(element_at(h_0_, b, H_, 0), element(pair), b < B ? H_ : 0, words);
    } else if (h_0_) {
      load_vector<false, 4>(element_at(h_0_, b, H_, 0), element(pair), b < B ? H_ : 0, words);
    }
    if constexpr (Mma::kElementBytes == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = Mma::bits(__uint_as_float(words[i]));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

 private:
  static __device__ __forceinline__ int pair_group(int pair) {
    return threadIdx.x / kWarpThreads * kPairs + pair;
  }
  static __device__ __forceinline__ int element(int pair) {
    return pair_group(pair) * 4 * kLaneElements + threadIdx.x % 4 * kLaneElements;
  }

  const typename Mma::Storage* h_0_;  // [B, H], or null
  int H_;
  bool in_vectors_;
};

// Whether a lane's sequence enters a step with a state that no block has sent: with the initial one
// where the sequence begins, whatever was received; at the start of an episode likewise, or zero.
template <bool kRagged>
struct Entering {
  Episodes<kRagged> episodes;
  bool replaced = false, by_initial = false;
  bool any_replaced = false;  // of the warp's lanes

  // At the step of the last load_start, in sequence b of the rows `now`.
  __device__ __forceinline__ void find(const Boundaries& boundaries, int b, const Rows& now, int t,
                                       const Rows& previous, int previous_t) {
    const bool valid = episodes.valid(now, b, t), starts = valid && episodes.starts();
    const bool begins = valid && !episodes.valid(previous, b, previous_t);
    by_initial = starts ? boundaries.reset_to_initial : begins;
    replaced = starts || begins;
    any_replaced = any_of_warp(replaced);
  }

  // In the place of a received vector; initial() is that of the initial state.
  template <class Initial>
  __device__ __forceinline__ void replace(uint4& words, const Initial& initial) const {
    if (by_initial) {
      words = initial();
    } else if (replaced) {
      words = make_uint4(0, 0, 0, 0);
    }
    // Waits for the loads here, so that a step without any does not.
    words.x = in_register(words.x);
    words.y = in_register(words.y);
    words.z = in_register(words.z);
    words.w = in_register(words.w);
  }
};

// The sums of the block's warps, [kBlockWarps, sequences, partial_stride], of one warp's fragments,
// whose rows are neighbour_row.
template <int kRowTiles>
__device__ __forceinline__ void store_partials(float* partials, int all_sequences,
                                               int sequence_tile,
                                               const float (&sums)[kRowTiles][4]) {
  constexpr int stride = partial_stride(kRowTiles);
  constexpr int tiles = kNeighbourTiles<kRowTiles>;
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  float* const to =
      partials + (warp * all_sequences + sequence_tile * kTileSequences + 2 * (lane % 4)) * stride +
      neighbour_row<kRowTiles>(0, 0);
#pragma unroll
  for (int r = 0; r < kRowTiles; r += tiles) {
#pragma unroll
    for (int sequence = 0; sequence < 2; ++sequence) {
      float* const row = to + sequence * stride + r * kTileRows;
      if constexpr (tiles == 2) {
        float4 all;
        all.x = sums[r][sequence];
        all.y = sums[r][2 + sequence];
        all.z = sums[r + 1][sequence];
        all.w = sums[r + 1][2 + sequence];
        *reinterpret_cast<float4*>(row) = all;
      } else {
        float2 both;
        both.x = sums[r][sequence];
        both.y = sums[r][2 + sequence];
        *reinterpret_cast<float2*>(row) = both;
      }
    }
  }
}

// The gates' preactivations of a unit of the block and a sequence of `all_sequences`: the sums of
// the block's warps, added to total.
template <int kRowTiles>
__device__ __forceinline__ void add_partials(const float* partials, int all_sequences, int sequence,
                                             int unit, float (&total)[4]) {
#pragma unroll
  for (int part = 0; part < kBlockWarps; ++part) {
    const float4 sum = *reinterpret_cast<const float4*>(
        partials + (part * all_sequences + sequence) * partial_stride(kRowTiles) + kGates * unit);
    total[0] += sum.x;
    total[1] += sum.y;
    total[2] += sum.z;
    total[3] += sum.w;
  }
}

// Where a unit's h of one sequence goes in the exchange of 8 sequences.
template <class Mma>
__device__ __forceinline__ uint32_t* word_of_unit(uint32_t* exchange, int unit, int sequence) {
  return exchange + operand_offset(unit, sequence, Mma::kElementBytes) / 4;
}
// Sends the h of the thread's unit, which in 16 bits has its neighbour's in the same word, to where
// word_of_unit says.
template <class Mma>
__device__ __forceinline__ void send_hidden(uint32_t* to, typename Mma::Storage hidden, int unit,
                                            uint32_t phase) {
  const uint32_t bits = Mma::bits(hidden);
  if constexpr (Mma::kElementBytes == 2) {
    const uint32_t upper = __shfl_down_sync(kFullMask, bits, 1);
    if (unit % 2 == 0) store_relaxed(to, pair_word(bits | upper << 16, phase));
  } else {
    store_relaxed(to, float_word(bits, phase));
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
