// Forward on the whole grid: a block has all four gates of its hidden units, a warp an eighth of the
// depth of all the block's rows. Free of torch.
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
// The state that enters an episode or a sequence's first valid step is not sent but put in the place
// of what was received (`Entering`), for the exchange has only h between -1 and 1.
#pragma once

#include "cuda/persistent/exchange.h"
#include "cuda/persistent/fragments.h"
#include "cuda/persistent/params.h"
#include "cuda/persistent/units.h"

namespace fused_lstm {
namespace cuda {
namespace {

// What enters a step of a sequence.
enum class Entering : int { previous, zero, initial };

// The sums of the block's warps, [kBlockWarps, sequences, partial_stride], of one warp's fragments.
template <int kRowTiles>
__device__ __forceinline__ void store_partials(float* partials, int all_sequences, int sequence_tile,
                                               const float (&sums)[kRowTiles][4]) {
  constexpr int stride = partial_stride(kRowTiles);
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  float* const to =
      partials +
      (warp * all_sequences + sequence_tile * kTileSequences + 2 * (lane % 4)) * stride + lane / 4;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    to[r * kTileRows] = sums[r][0];
    to[r * kTileRows + stride] = sums[r][1];
    to[r * kTileRows + 8] = sums[r][2];
    to[r * kTileRows + 8 + stride] = sums[r][3];
  }
}

template <class Mma, int kRowTiles, int kDepthTiles, int kSequenceTiles>
__global__ void __launch_bounds__(kBlockThreads, 1) grid_forward_kernel(
    const __grid_constant__ PersistentForwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  using Storage = typename Types::Storage;
  constexpr int kUnits = kRowTiles * kTileUnits;
  constexpr int kSequences = kSequenceTiles * kTileSequences;
  constexpr int kThreadUnits = (kUnits * kSequences + kBlockThreads - 1) / kBlockThreads;
  constexpr int kPairs = kDepthTiles / 2;                   // of depth tiles of a warp
  constexpr int kTileVectors = kBlockWarps * kPairs * kWarpThreads;  // of 8 sequences
  constexpr uint32_t kPhase = Mma::kElementBytes == 2 ? kPairPhase : kFloatPhase;
  constexpr int kBuffers = kSequenceTiles == 1 ? 2 : 1;  // of the partial sums
  constexpr int kPartials = kBlockWarps * kSequences * partial_stride(kRowTiles);
  constexpr int kLaneElements = 16 / Mma::kElementBytes;  // of a pair of depth tiles

  const Placement& placement = params.placement;
  const int member = blockIdx.x % placement.blocks, block_group = blockIdx.x / placement.blocks;
  const int slice = block_group % placement.slices, direction = block_group / placement.slices;
  const ForwardParams<Types>& p = params.layer[direction];
  const int H = static_cast<int>(p.hidden_size);
  const int T = static_cast<int>(p.steps.length);
  const int first_sequence = slice * placement.sequences;
  const int first_unit = member * kUnits;
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;

  char* const shared = dynamic_shared();
  float* const partials = reinterpret_cast<float*>(shared + params.layout.partials);
  uint32_t* const exchange = params.exchange + 2 * block_group * params.exchange_words;

  // Row 4 unit + gate.
  const Storage* const weight_hh = params.weight_hh[direction];
  Fragments<Mma, kRowTiles, kDepthTiles> weights(shared + params.layout.weights);
  const int first_depth = warp * kDepthTiles * Mma::kTileElements;
  const auto gather = [&](const auto& load) {
    weights.gather([&](int row, int depth, Storage(&elements)[Mma::kLaneElements]) {
      const int unit = first_unit + row / kGates;
      load(weight_hh + offset_of(row % kGates * H + unit, H), first_depth + depth,
           unit < H ? H : 0, elements);
    });
  };
  if (takes_vectors(weight_hh, H)) {
    gather([](const Storage* row, int column, int columns, auto& elements) {
      load_vector(row, column, columns, elements);
    });
  } else {
    gather([](const Storage* row, int column, int columns, auto& elements) {
      load_neighbours(row, column, columns, elements);
    });
  }

  // The lane's vectors of the exchange. Those that no block sends, past the last unit, meet weights
  // of zero: the lane reads the first ones of its sequence instead.
  int at[kPairs];
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    const int group = warp * kPairs + pair;
    const int element = group * 4 * kLaneElements + lane % 4 * kLaneElements;
    at[pair] = element < placement.blocks * kUnits ? group * kWarpThreads + lane : lane / 4 * 4;
  }

  // Of the sequences whose operand the lane reads.
  int lane_length[kSequenceTiles];
  const auto lane_sequence = [&](int tile) {
    return first_sequence + tile * kTileSequences + lane / 4;
  };
#pragma unroll
  for (int tile = 0; tile < kSequenceTiles; ++tile) {
    lane_length[tile] = valid_length(p.boundaries, p.steps, lane_sequence(tile));
  }
  const Entering initial = p.h_0 ? Entering::initial : Entering::zero;
  // What enters step t of the lane's sequence; previous and previous_t are the step before.
  const auto entering = [&](const Rows& now, int t, const Rows& previous, int previous_t,
                            const EpisodeStart& start, int tile) {
    const int b = lane_sequence(tile);
    if (b >= now.count || t >= lane_length[tile]) return Entering::previous;  // no valid step
    if (starts(start, lane_length[tile])) {
      return p.boundaries.reset_to_initial ? initial : Entering::zero;
    }
    const bool first = b >= previous.count || previous_t >= lane_length[tile];
    return first ? initial : Entering::previous;
  };
  const auto initial_words = [&](int pair, int tile) {
    const int b = lane_sequence(tile);
    const int element = (warp * kPairs + pair) * 4 * kLaneElements + lane % 4 * kLaneElements;
    uint32_t words[4] = {};
    for (int e = 0; e < kLaneElements; ++e) {
      if (element + e >= H || b >= p.steps.batch) continue;
      const uint32_t bits = Mma::bits(p.h_0[offset_of(b, H) + element + e]);
      if constexpr (Mma::kElementBytes == 2) {
        words[e / 2] |= bits << (16 * (e % 2));
      } else {
        words[e] = bits;
      }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  };

  int index = 0;
  while (index < T - 1 && rows_of(p.steps, index).count <= first_sequence) ++index;
  Rows previous = {0, 0}, now = rows_of(p.steps, index), next = rows_of(p.steps, index + 1);

  ForwardUnit<Types> units[kThreadUnits];
  float bias[kThreadUnits][4] = {}, ahead[kThreadUnits][4] = {};
  EpisodeStart start[kThreadUnits], lane_start[kSequenceTiles];
#pragma unroll
  for (int i = 0; i < kThreadUnits; ++i) {
    const int pair = i * kBlockThreads + threadIdx.x;
    const int unit = first_unit + pair % kUnits, sequence = pair / kUnits;
    units[i].start(p, unit, first_sequence + sequence, sequence < placement.sequences);
    if (unit < H) {
      add_bias(bias[i], params.bias_ih[direction], H, unit);
      add_bias(bias[i], params.bias_hh[direction], H, unit);
    }
    load_preactivations(params.preactivations[direction], H, now.first + units[i].b, unit,
                        units[i].exists(now), ahead[i]);
    start[i] = load_episode_start(p.boundaries, p.steps, index, units[i].b);
  }
#pragma unroll
  for (int tile = 0; tile < kSequenceTiles; ++tile) {
    lane_start[tile] = load_episode_start(p.boundaries, p.steps, index, lane_sequence(tile));
  }
  __syncthreads();  // of the fragments in shared memory

  const int sequence_tiles = (placement.sequences + kTileSequences - 1) / kTileSequences;
  for (int version = 0; index < T && now.count > first_sequence; ++index, ++version) {
    const int t = time_of(p.steps, index);
    const int previous_t = p.steps.reverse ? t + 1 : t - 1;
    float* const sums_of_warps = partials + version % kBuffers * kPartials;
    const uint4* const from =
        reinterpret_cast<const uint4*>(exchange + version % 2 * params.exchange_words);
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
      if (kSequenceTiles > 1 && tile >= sequence_tiles) continue;
      uint4 words[kPairs] = {};
      if (version > 0) {
        receive(from + tile * kTileVectors, at, phase_of(version, kPhase), kPhase, words);
      }
      const Entering enters = entering(now, t, previous, previous_t, lane_start[tile], tile);
      if (any_of_warp(enters != Entering::previous)) {
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          if (enters == Entering::initial) words[pair] = initial_words(pair, tile);
          if (enters == Entering::zero) words[pair] = make_uint4(0, 0, 0, 0);
        }
      }
      float sums[kRowTiles][4] = {};
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        weights.multiply(sums, 2 * pair, words[pair].x, words[pair].y);
        weights.multiply(sums, 2 * pair + 1, words[pair].z, words[pair].w);
      }
      store_partials<kRowTiles>(sums_of_warps, kSequences, tile, sums);
    }
    __syncthreads();

    const bool more = next.count > first_sequence;
    Gates<FastFloat> gates[kThreadUnits];
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) {
      const int pair = i * kBlockThreads + threadIdx.x;
      const int unit = pair % kUnits, sequence = pair / kUnits;
      if (pair >= kUnits * kSequences || sequence / kTileSequences >= sequence_tiles) continue;
      float total[4];
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) total[gate] = ahead[i][gate] + bias[i][gate];
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
      gates[i] = units[i].step(p, now, t, total, starts(start[i], units[i].length));
      if (!more) continue;
      const uint32_t phase = phase_of(version + 1, kPhase);
      uint32_t* const to = exchange + (version + 1) % 2 * params.exchange_words +
                           sequence / kTileSequences * kTileVectors * 4 +
                           operand_offset(first_unit + unit, sequence % kTileSequences,
                                          Mma::kElementBytes) / 4;
      const uint32_t bits = Mma::bits(units[i].hidden);
      if constexpr (Mma::kElementBytes == 2) {
        const uint32_t upper = __shfl_down_sync(kFullMask, bits, 1);
        if (unit % 2 == 0) store_relaxed(to, pair_word(bits | upper << 16, phase));
      } else {
        store_relaxed(to, float_word(bits, phase));
      }
    }
    if (kBuffers == 1) __syncthreads();

    // What no other block waits for: results, and the next step's preactivations.
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) {
      const int pair = i * kBlockThreads + threadIdx.x;
      if (pair >= kUnits * kSequences) continue;
      units[i].emit(p, now, t, gates[i]);
      load_preactivations(params.preactivations[direction], H, next.first + units[i].b, units[i].j,
                          units[i].exists(next), ahead[i]);
      start[i] = load_episode_start(p.boundaries, p.steps, index + 1, units[i].b);
    }
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
      lane_start[tile] = load_episode_start(p.boundaries, p.steps, index + 1, lane_sequence(tile));
    }
    previous = now;
    now = next;
    next = rows_of(p.steps, index + 2);
  }
#pragma unroll
  for (int i = 0; i < kThreadUnits; ++i) units[i].finish(p);
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
