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

#include "cuda/persistent/grid_operand.h"
#include "cuda/persistent/units.h"

namespace fused_lstm {
namespace cuda {
namespace {

template <class Mma, int kRowTiles, int kDepthTiles, bool kRagged, int kResident>
__global__ void __launch_bounds__(kBlockThreads, 1) grid_forward_kernel(
    const __grid_constant__ PersistentForwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  constexpr int kUnits = kRowTiles * kTileUnits;
  static_assert(kUnits * kTileSequences <= kBlockThreads, "a thread has one unit of one sequence");
  constexpr int kPairs = kDepthTiles / 2;  // of depth tiles of a warp
  constexpr int kReceived = received_at_once(kPairs);
  constexpr uint32_t kPhase = Mma::kElementBytes == 2 ? kPairPhase : kFloatPhase;
  constexpr int kPartials = kBlockWarps * kTileSequences * partial_stride(kRowTiles);

  const Placement& placement = params.placement;
  const int member = blockIdx.x % placement.blocks, block_group = blockIdx.x / placement.blocks;
  const int direction = block_group >= placement.slices;  // of two at most
  const int slice = block_group - direction * placement.slices;
  const ForwardParams<Types>& p = params.layer[direction];
  const Timeline<kRagged> timeline(p.steps);
  const int T = timeline.length, B = timeline.batch;
  const int first_sequence = slice * placement.sequences;

  char* const shared = dynamic_shared();
  float* const partials = reinterpret_cast<float*>(shared + params.layout.partials);
  const int buffer_bytes = in_register(4 * static_cast<int>(params.exchange_words));
  uint32_t* const exchange = in_register(params.exchange + 2 * block_group * params.exchange_words);

  Fragments<Mma, kRowTiles, kDepthTiles, kResident> weights(shared + params.layout.weights);
  gather_units(params, direction, member, weights);

  const LaneOperand<Mma, kDepthTiles> operand(p, placement.blocks * kUnits);
  const int lane_b = first_sequence + threadIdx.x % kWarpThreads / 4;
  Entering<kRagged> entering;
  const auto replace = [&](int first, uint4(&words)[kReceived]) {
    if (__builtin_expect(!entering.any_replaced, true)) return;
#pragma unroll
    for (int i = 0; i < kReceived; ++i) {
      entering.replace(words[i], [&] { return operand.initial(first + i, lane_b, B); });
    }
  };

  int index = 0;
  if (kRagged) {
    while (timeline.rows(index).count <= first_sequence) ++index;
  }
  Rows now = timeline.rows(index), next = timeline.rows(index + 1);
  auto after_next = timeline.load_rows(index + 2);

  const int its_unit = threadIdx.x % kUnits, sequence = threadIdx.x / kUnits;
  const bool has_unit = sequence < kTileSequences;
  const int unit_of_layer = member * kUnits + its_unit;
  ForwardUnit<Types, kRagged, true> unit;
  unit.start(params, direction, timeline, unit_of_layer, first_sequence + sequence,
             sequence < placement.sequences);
  unit.load(now);
  unit.episodes.load_start(timeline, index);
  uint32_t* const word = in_register(word_of_unit<Mma>(exchange, unit_of_layer, sequence));
  entering.episodes = Episodes<kRagged>(p.boundaries, timeline, lane_b);
  entering.episodes.load_start(timeline, index);
  unit.finish_start(p);

  // The sums of version `version`, whose words words_of(first, words) sets.
  const auto multiply = [&](int version, const auto& words_of) {
    float sums[kRowTiles][4] = {};
#pragma unroll
    for (int first = 0; first < kPairs; first += kReceived) {
      uint4 words[kReceived];
      words_of(first, words);
#pragma unroll
      for (int i = 0; i < kReceived; ++i) {
        weights.multiply(sums, 2 * (first + i), words[i].x, words[i].y);
        weights.multiply(sums, 2 * (first + i) + 1, words[i].z, words[i].w);
      }
    }
    store_partials<kRowTiles>(partials + version % 2 * kPartials, kTileSequences, 0, sums);
  };
  if (kRagged) entering.find(p.boundaries, lane_b, now, timeline.time(index), {0, 0}, 0);
  multiply(0, [&](int first, uint4(&words)[kReceived]) {
#pragma unroll
    for (int i = 0; i < kReceived; ++i) words[i] = operand.initial(first + i, lane_b, B);
    if (kRagged) replace(first, words);
  });
  entering.episodes.load_start(timeline, index + 1);

  for (int version = 0;; ++version, ++index) {
    const int t = timeline.time(index);
    const bool more = index + 1 < T && (!kRagged || next.count > first_sequence);
    __syncthreads();
    if (has_unit) {
      float total[4];
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) total[gate] = unit.preactivation(gate);
      add_partials<kRowTiles>(partials + version % 2 * kPartials, kTileSequences, sequence,
                              its_unit, total);
      const Gates<FastFloat> gates = unit.step(now, t, unit.episodes.starts(), total);
      if (more) {
        send_hidden<Mma>(row_of(word, (version + 1) % 2, buffer_bytes), unit.hidden, its_unit,
                         phase_of(version + 1, kPhase));
      }
      unit.emit(now, t, gates);  // what no other block waits for
    }
    if (!more) break;
    if (kRagged) {
      entering.find(p.boundaries, lane_b, next, timeline.time(index + 1), now, t);
      __syncwarp();  // keeps later loads behind
    }
    now = next;
    next = timeline.rows_after(now, after_next, 1);
    after_next = timeline.load_rows(index + 3);
    unit.load(now);
    unit.episodes.load_start(timeline, index + 1);
    entering.episodes.load_start(timeline, index + 2);
    const uint4* const from =
        reinterpret_cast<const uint4*>(row_of(exchange, (version + 1) % 2, buffer_bytes));
    multiply(version + 1, [&](int first, uint4(&words)[kReceived]) {
      receive(from, operand.at, first, phase_of(version + 1, kPhase), kPhase, words);
      if (kRagged) replace(first, words);
    });
  }
  unit.finish(p);
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
