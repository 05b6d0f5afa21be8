// Forward on the whole grid: a block has all four gates of its hidden units, a warp an eighth of
// the depth of all the block's rows. Free of torch.
//
//   exchange [2][depth, 8 sequences] words in global memory: h, from every block
//              |
//     warp w: its eighth of the depth, straight into registers
//              |
//              +---- [16 R, H / 8] weights, in registers: partial sums of 16 R rows
//              |
//     partials [8 warps, sequences, 16 R] in shared memory; one barrier of the block
//              |
//     thread: some (unit, sequence): the sum of 8 parts, gates, its cell state in a register
//              |
//              +---- h ----> exchange
//
// The state that enters an episode or a sequence's first valid step is not sent but put in the
// place of what was received (`Entering`), for the exchange has only h between -1 and 1.
#pragma once

#include <type_traits>

#include "cuda/persistent/exchange.h"
#include "cuda/persistent/fragments.h"
#include "cuda/persistent/params.h"
#include "cuda/persistent/units.h"

namespace fused_lstm {
namespace cuda {
namespace {

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

template <class Mma, int kRowTiles, int kDepthTiles, int kSequenceTiles, bool kRagged,
          int kResident>
__global__ void __launch_bounds__(kBlockThreads, 1) grid_forward_kernel(
    const __grid_constant__ PersistentForwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  using Storage = typename Types::Storage;
  constexpr int kUnits = kRowTiles * kTileUnits;
  constexpr int kSequences = kSequenceTiles * kTileSequences;
  constexpr int kThreadUnits = (kUnits * kSequences + kBlockThreads - 1) / kBlockThreads;
  constexpr int kPairs = kDepthTiles / 2;  // of depth tiles of a warp
  constexpr int kReceived = received_at_once(kPairs);
  constexpr int kTileVectors = kBlockWarps * kPairs * kWarpThreads;  // of 8 sequences
  constexpr uint32_t kPhase = Mma::kElementBytes == 2 ? kPairPhase : kFloatPhase;
  constexpr int kBuffers = kSequenceTiles == 1 ? 2 : 1;  // of the partial sums
  constexpr int kPartials = kBlockWarps * kSequences * partial_stride(kRowTiles);
  constexpr int kLaneElements = 16 / Mma::kElementBytes;  // of a pair of depth tiles

  const Placement& placement = params.placement;
  const int member = blockIdx.x % placement.blocks, block_group = blockIdx.x / placement.blocks;
  const int direction = block_group >= placement.slices;  // of two at most
  const int slice = block_group - direction * placement.slices;
  const ForwardParams<Types>& p = params.layer[direction];
  const Timeline<kRagged> timeline(p.steps);
  const int H = in_register(static_cast<int>(p.hidden_size)), T = timeline.length,
            B = timeline.batch;
  const int first_sequence = slice * placement.sequences;
  const int first_unit = member * kUnits;
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;

  char* const shared = dynamic_shared();
  float* const partials = reinterpret_cast<float*>(shared + params.layout.partials);
  const int buffer_bytes = in_register(4 * static_cast<int>(params.exchange_words));
  uint32_t* const exchange = in_register(params.exchange + 2 * block_group * params.exchange_words);

  // Row 4 unit + gate.
  const Storage* const weight_hh = params.weight_hh[direction];
  Fragments<Mma, kRowTiles, kDepthTiles, kResident> weights(shared + params.layout.weights);
  const int first_depth = warp * kDepthTiles * Mma::kTileElements;
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

  // The lane's vectors of the exchange. Those that no block sends, past the last unit, meet weights
  // of zero: the lane reads the first ones of its sequence instead.
  int at[kPairs];
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    const int group = warp * kPairs + pair;
    const int element = group * 4 * kLaneElements + lane % 4 * kLaneElements;
    at[pair] = in_register(element < placement.blocks * kUnits ? group * kWarpThreads + lane
                                                               : lane / 4 * 4);
  }

  // Of the sequences whose operand the lane reads.
  const auto lane_sequence = [&](int tile) {
    return first_sequence + tile * kTileSequences + lane / 4;
  };
  const bool takes_vectors_of_h = takes_vectors(p.h_0, H, 16);
  const auto initial_words = [&](int pair, int tile) {
    const int b = lane_sequence(tile);
    const int element = (warp * kPairs + pair) * 4 * kLaneElements + lane % 4 * kLaneElements;
    uint32_t words[4] = {};
    if (p.h_0 && takes_vectors_of_h) {
      load_vector<true, 4>(element_at(p.h_0, b, H, 0), element, b < B ? H : 0, words);
    } else if (p.h_0) {
      load_vector<false, 4>(element_at(p.h_0, b, H, 0), element, b < B ? H : 0, words);
    }
    if constexpr (Mma::kElementBytes == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = Mma::bits(__uint_as_float(words[i]));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  };
  // The initial state where the lane's sequence begins at the step `now`, whatever was received; at
  // the start of an episode likewise, or zero.
  Episodes<kRagged> lane_episodes[kSequenceTiles];
  bool replaces[kSequenceTiles], initial[kSequenceTiles];  // by zero, or by the initial state
  bool any_replaces[kSequenceTiles];                       // of the warp's lanes
  const auto find_replaced = [&](const Rows& now, int t, const Rows& previous, int previous_t) {
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
      const Episodes<kRagged>& its = lane_episodes[tile];
      const int b = lane_sequence(tile);
      const bool valid = its.valid(now, b, t), starts = valid && its.starts();
      const bool begins = valid && !its.valid(previous, b, previous_t);
      initial[tile] = starts ? p.boundaries.reset_to_initial : begins;
      replaces[tile] = starts || begins;
      any_replaces[tile] = any_of_warp(replaces[tile]);
    }
  };
  const auto replace = [&](int tile, int first, uint4(&words)[kReceived]) {
    if (__builtin_expect(!any_replaces[tile], true)) return;
#pragma unroll
    for (int i = 0; i < kReceived; ++i) {
      if (initial[tile]) {
        words[i] = initial_words(first + i, tile);
      } else if (replaces[tile]) {
        words[i] = make_uint4(0, 0, 0, 0);
      }
      // Waits for the loads here, so that a step without any does not.
      words[i].x = in_register(words[i].x);
      words[i].y = in_register(words[i].y);
      words[i].z = in_register(words[i].z);
      words[i].w = in_register(words[i].w);
    }
  };

  int index = 0;
  if (kRagged) {
    while (timeline.rows(index).count <= first_sequence) ++index;
  }
  Rows now = timeline.rows(index), next = timeline.rows(index + 1);
  auto after_next = timeline.load_rows(index + 2);

  ForwardUnit<Types, kRagged, kThreadUnits == 1> units[kThreadUnits];
  uint32_t* word_of[kThreadUnits];  // of the exchange, in its first buffer
#pragma unroll
  for (int i = 0; i < kThreadUnits; ++i) {
    const int pair = i * kBlockThreads + threadIdx.x;
    const int unit = first_unit + pair % kUnits, sequence = pair / kUnits;
    units[i].start(params, direction, timeline, unit, first_sequence + sequence,
                   sequence < placement.sequences);
    units[i].load(now);
    units[i].episodes.load_start(timeline, index);
    word_of[i] =
        in_register(exchange + sequence / kTileSequences * kTileVectors * 4 +
                    operand_offset(unit, sequence % kTileSequences, Mma::kElementBytes) / 4);
  }
#pragma unroll
  for (int tile = 0; tile < kSequenceTiles; ++tile) {
    lane_episodes[tile] = Episodes<kRagged>(p.boundaries, timeline, lane_sequence(tile));
    lane_episodes[tile].load_start(timeline, index);
  }

#pragma unroll
  for (int i = 0; i < kThreadUnits; ++i) units[i].finish_start(p);

  // The sums of version `version`, whose words words_of(tile, first, words) sets.
  const int sequence_tiles = (placement.sequences + kTileSequences - 1) / kTileSequences;
  const auto multiply = [&](int version, const auto& words_of) {
    float* const sums_of_warps = partials + version % kBuffers * kPartials;
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
      if (kSequenceTiles > 1 && tile >= sequence_tiles) continue;
      float sums[kRowTiles][4] = {};
#pragma unroll
      for (int first = 0; first < kPairs; first += kReceived) {
        uint4 words[kReceived];
        words_of(tile, first, words);
#pragma unroll
        for (int i = 0; i < kReceived; ++i) {
          weights.multiply(sums, 2 * (first + i), words[i].x, words[i].y);
          weights.multiply(sums, 2 * (first + i) + 1, words[i].z, words[i].w);
        }
      }
      store_partials<kRowTiles>(sums_of_warps, kSequences, tile, sums);
    }
  };
  if (kRagged) find_replaced(now, timeline.time(index), {0, 0}, 0);
  multiply(0, [&](int tile, int first, uint4(&words)[kReceived]) {
#pragma unroll
    for (int i = 0; i < kReceived; ++i) words[i] = initial_words(first + i, tile);
    if (kRagged) replace(tile, first, words);
  });
#pragma unroll
  for (int tile = 0; tile < kSequenceTiles; ++tile) {
    lane_episodes[tile].load_start(timeline, index + 1);
  }

  for (int version = 0;; ++version, ++index) {
    const int t = timeline.time(index);
    const bool more = index + 1 < T && (!kRagged || next.count > first_sequence);
    const float* const sums_of_warps = partials + version % kBuffers * kPartials;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) {
      const int pair = i * kBlockThreads + threadIdx.x;
      const int unit = pair % kUnits, sequence = pair / kUnits;
      if (sequence >= sequence_tiles * kTileSequences) continue;
      float total[4];
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) total[gate] = units[i].preactivation(gate);
#pragma unroll
      for (int part = 0; part < kBlockWarps; ++part) {
        const float4 sum = *reinterpret_cast<const float4*>(
            sums_of_warps + (part * kSequences + sequence) * partial_stride(kRowTiles) +
            kGates * unit);
        total[0] += sum.x;
        total[1] += sum.y;
        total[2] += sum.z;
        total[3] += sum.w;
      }
      const Gates<FastFloat> gates = units[i].step(now, t, units[i].episodes.starts(), total);
      if (more) {
        const uint32_t phase = phase_of(version + 1, kPhase);
        uint32_t* const to = row_of(word_of[i], (version + 1) % 2, buffer_bytes);
        const uint32_t bits = Mma::bits(units[i].hidden);
        if constexpr (Mma::kElementBytes == 2) {
          const uint32_t upper = __shfl_down_sync(kFullMask, bits, 1);
          if (unit % 2 == 0) store_relaxed(to, pair_word(bits | upper << 16, phase));
        } else {
          store_relaxed(to, float_word(bits, phase));
        }
      }
      units[i].emit(now, t, gates);  // what no other block waits for
    }
    if (!more) break;
    if (kBuffers == 1) __syncthreads();
    if (kRagged) find_replaced(next, timeline.time(index + 1), now, t);
    now = next;
    next = timeline.rows_after(now, after_next, 1);
    after_next = timeline.load_rows(index + 3);
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) {
      units[i].load(now);
      units[i].episodes.load_start(timeline, index + 1);
    }
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
      lane_episodes[tile].load_start(timeline, index + 2);
    }
    const uint4* const from =
        reinterpret_cast<const uint4*>(row_of(exchange, (version + 1) % 2, buffer_bytes));
    multiply(version + 1, [&](int tile, int first, uint4(&words)[kReceived]) {
      receive(from + tile * kTileVectors, at, first, phase_of(version + 1, kPhase), kPhase, words);
      if (kRagged) replace(tile, first, words);
    });
  }
#pragma unroll
  for (int i = 0; i < kThreadUnits; ++i) units[i].finish(p);
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
