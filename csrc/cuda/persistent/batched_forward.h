// Forward on the whole grid with large batches: as grid_forward.h, but the sequences of a block are
// groups of 8 kSequenceTiles that take turns, a step of each one after the other. Free of torch.
//
//   exchange [2][group, depth, 8 sequences] words: h, from every block
//              |
//     warp w: its eighth of the depth, a few vectors ahead of the product, the first ones while
//     the group before this one has its gates
//              |
//              +---- weights: partial sums, in one of two buffers; one barrier of the block
//              |     (where one buffer alone fits, two barriers)
//              |
//     thread: some (unit, sequence) of the group, its states in shared memory
//              |
//              +---- h ----> exchange, while the next groups are multiplied
//
// For each group the exchange is that of exchange.h: a block sends version v + 1 after the barrier
// of the group's version v. Of partial sums the buffer of an item, a step of one group, is written
// again two items later, after the barrier of the item between them, before which the threads have
// read it.
//
// Of packed sequences a group has no item in steps that none of its sequences has. In the reverse
// direction it then begins later than others, with a version 0 of its own.
#pragma once

#include "cuda/persistent/grid_operand.h"
#include "cuda/persistent/units.h"

namespace fused_lstm {
namespace cuda {
namespace {

// Pairs of depth tiles that are loaded at once, of `all`: an even number of times, so that
// registers take turns, if such a part has loads enough to hide their latency; else all.
FUSED_LSTM_INLINE constexpr int loaded_at_once(int all, int most) {
  for (int part = most; part > 0; --part) {
    if (all % (2 * part) == 0) return part;
  }
  return all;
}

// Of a thread's unit and its sequence in a group, after the last valid step.
struct alignas(8) GroupState {
  float cell, hidden;
};

template <class Mma, int kRowTiles, int kDepthTiles, int kSequenceTiles, bool kRagged,
          int kResident>
__global__ void __launch_bounds__(kBlockThreads, 1) batched_forward_kernel(
    const __grid_constant__ PersistentForwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  constexpr int kUnits = kRowTiles * kTileUnits;
  constexpr int kSequences = kSequenceTiles * kTileSequences;  // of a group
  static_assert(kUnits * kSequences <= kBlockThreads, "a thread has one unit of one sequence");
  constexpr int kPairs = kDepthTiles / 2;  // of depth tiles of a warp
  // Fewer where many registers are taken.
  constexpr bool kTight = kRagged && Mma::kElementBytes == 4 && kRowTiles * kDepthTiles > 48;
  constexpr int kAtOnce = loaded_at_once(kPairs, (kTight ? 2 : 6) / kSequenceTiles);
  constexpr int kParts = kPairs / kAtOnce;
  constexpr int kBuffers = kParts > 1 ? 2 : 1;                       // of words
  constexpr int kTileVectors = kBlockWarps * kPairs * kWarpThreads;  // of 8 sequences
  constexpr int kGroupBytes = kSequenceTiles * kTileVectors * 16;    // of the exchange
  constexpr uint32_t kPhase = Mma::kElementBytes == 2 ? kPairPhase : kFloatPhase;
  constexpr int kPartials = kBlockWarps * kSequences * partial_stride(kRowTiles);
  constexpr int kPartialBuffers = partial_buffers(kRowTiles * kDepthTiles);

  const Placement& placement = params.placement;
  const int member = blockIdx.x % placement.blocks, block_group = blockIdx.x / placement.blocks;
  const int direction = block_group >= placement.slices;  // of two at most
  const int slice = block_group - direction * placement.slices;
  const ForwardParams<Types>& p = params.layer[direction];
  const Timeline<kRagged> timeline(p.steps);
  const int T = timeline.length, B = timeline.batch;
  const int first_sequence = slice * placement.sequences;
  const int slice_end = first_sequence + placement.sequences;
  const int after_last = in_register(slice_end < B ? slice_end : B);
  const auto first_of = [&](int group) { return first_sequence + group * kSequences; };

  char* const shared = dynamic_shared();
  float* const partials = reinterpret_cast<float*>(shared + params.layout.partials);
  GroupState* const states =  // [groups, threads]
      reinterpret_cast<GroupState*>(shared + params.layout.states) + threadIdx.x;
  int* const begun =  // [groups], the index of each group's first step
      reinterpret_cast<int*>(shared + params.layout.begun);
  const int buffer_bytes = in_register(4 * static_cast<int>(params.exchange_words));
  uint32_t* const exchange = in_register(params.exchange + 2 * block_group * params.exchange_words);

  Fragments<Mma, kRowTiles, kDepthTiles, kResident> weights(shared + params.layout.weights);
  gather_units(params, direction, member, weights);

  int index = 0;
  if (kRagged) {
    while (timeline.rows(index).count <= first_sequence) ++index;
  }
  Rows previous = {0, 0}, now = timeline.rows(index), next = timeline.rows(index + 1);
  auto after_next = timeline.load_rows(index + 2);

  const int its_unit = threadIdx.x % kUnits, sequence = threadIdx.x / kUnits;
  const bool has_unit = sequence < kSequences;
  const int unit_of_layer = member * kUnits + its_unit;
  ForwardUnit<Types, kRagged, false> unit;
  for (int group = 0; first_of(group) < after_last; ++group) {
    unit.start(params, direction, timeline, unit_of_layer, first_of(group) + sequence, has_unit);
    unit.finish_start(p);
    if (has_unit) states[group * kBlockThreads] = {unit.cell, widened(unit.hidden)};
  }
  const auto load_ahead = [&](int group, const Rows& rows, int index) {
    return unit.load_ahead(p, timeline, first_of(group) + sequence - unit.b, rows, index);
  };
  const auto move = [&](int group, const decltype(load_ahead(0, now, 0))& loaded) {
    unit.move(p, timeline, first_of(group) + sequence - unit.b, loaded);
    const GroupState state = states[group * kBlockThreads];
    unit.cell = state.cell;
    unit.hidden = rounded<typename Types::Storage>(state.hidden);
  };
  uint32_t* const word =
      in_register(word_of_unit<Mma>(exchange + sequence / kTileSequences * kTileVectors * 4,
                                    unit_of_layer, sequence % kTileSequences));

  const LaneOperand<Mma, kDepthTiles> operand(p, placement.blocks * kUnits);
  Entering<kRagged> entering[kSequenceTiles];
  // Whether sequences enter otherwise than with their groups: without it the mask is never looked
  // at.
  const bool enters_later = kRagged && (p.boundaries.reset || p.steps.reverse);
  const auto lane_b = [&](int group, int tile) {
    return first_of(group) + tile * kTileSequences + threadIdx.x % kWarpThreads / 4;
  };
  const auto load_entering = [&](int group, int index) {
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
      entering[tile].episodes = Episodes<kRagged>(p.boundaries, timeline, lane_b(group, tile));
      entering[tile].episodes.load_start(timeline, index);
    }
  };

  // Of a part's vectors, the i-th is of this pair of depth tiles, and of tile i % kSequenceTiles.
  const auto pair_of = [&](int part, int i) { return part * kAtOnce + i / kSequenceTiles; };
  constexpr int kVectors = kAtOnce * kSequenceTiles;
  const auto load_words = [&](int group, int version, int part, uint4(&words)[kVectors]) {
    const uint4* const from = reinterpret_cast<const uint4*>(
        row_of(row_of(exchange, version % 2, buffer_bytes), group, kGroupBytes));
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int tile = i % kSequenceTiles;
      words[i] = load_relaxed(from + tile * kTileVectors + operand.at[pair_of(part, i)]);
    }
  };

  if (has_unit) move(0, load_ahead(0, now, index));
  if (enters_later) load_entering(0, index);
  uint4 words[kBuffers][kVectors];
  int group = 0, version = 0;
  bool begins = true;  // the group
  for (int item = 0;; ++item) {
    const int t = timeline.time(index);
    const int here = (now.count < after_last ? now.count : after_last) - first_of(group);
    const bool is_last = here <= kSequences;  // of the step's groups
    const bool goes_on = index + 1 < T && (!kRagged || next.count > first_of(group));
    const bool more = !is_last || (index + 1 < T && (!kRagged || next.count > first_sequence));
    const int next_group = is_last ? 0 : group + 1, next_index = index + is_last;
    const bool next_begins = (is_last ? now.count : previous.count) <= first_of(next_group);
    int next_version = next_index;
    if (kRagged) {
      next_version = next_begins           ? 0
                     : next_group == group ? version + 1
                                           : next_index - begun[next_group];
    }
    const bool next_receives = more && !next_begins;

    if (enters_later) {
#pragma unroll
      for (int tile = 0; tile < kSequenceTiles; ++tile) {
        entering[tile].find(p.boundaries, lane_b(group, tile), now, t, previous,
                            timeline.time(index - 1));
      }
      if (more) load_entering(next_group, next_index);
    }

    float sums[kSequenceTiles][kRowTiles][4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      uint4(&its)[kVectors] = words[part % kBuffers];
      if (begins) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          its[i] = operand.initial(pair_of(part, i), lane_b(group, i % kSequenceTiles), B);
        }
      } else {
        await_words([&] { load_words(group, version, part, its); }, phase_of(version, kPhase),
                    kPhase, its);
      }
      const auto load_words_ahead = [&] {
        uint4(&ahead)[kVectors] = words[(part + 1) % kBuffers];
        if (part + 1 < kParts) {
          if (!begins) load_words(group, version, part + 1, ahead);
        } else if (next_receives) {
          load_words(next_group, next_version, 0, ahead);
        }
      };
      if (kBuffers > 1) load_words_ahead();
      if (enters_later) {
#pragma unroll
        for (int tile = 0; tile < kSequenceTiles; ++tile) {
          if (__builtin_expect(!entering[tile].any_replaced, true)) continue;
#pragma unroll
          for (int i = tile; i < kVectors; i += kSequenceTiles) {
            entering[tile].replace(
                its[i], [&] { return operand.initial(pair_of(part, i), lane_b(group, tile), B); });
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kVectors; i += kSequenceTiles) {
        uint32_t operands[2][kSequenceTiles][2];
#pragma unroll
        for (int tile = 0; tile < kSequenceTiles; ++tile) {
          operands[0][tile][0] = its[i + tile].x;
          operands[0][tile][1] = its[i + tile].y;
          operands[1][tile][0] = its[i + tile].z;
          operands[1][tile][1] = its[i + tile].w;
        }
        weights.multiply(sums, 2 * pair_of(part, i), operands[0]);
        weights.multiply(sums, 2 * pair_of(part, i) + 1, operands[1]);
      }
      if (kBuffers == 1) load_words_ahead();
    }
    float* const its_partials = partials + item % kPartialBuffers * kPartials;
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
      store_partials<kRowTiles>(its_partials, kSequences, tile, sums[tile]);
    }
    if (kRagged && begins && threadIdx.x == 0) begun[group] = index;
    __syncwarp();  // keeps the loads behind
    // Nothing past the last item, nor for threads without a unit: others may write there.
    const int ahead_count = is_last ? next.count : now.count;
    const Rows rows_ahead = {is_last ? next.first : now.first, more && has_unit ? ahead_count : 0};
    const auto ahead = load_ahead(next_group, rows_ahead, next_index);
    __syncthreads();

    if (has_unit) {
      float total[4];
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) total[gate] = unit.preactivation(gate);
      add_partials<kRowTiles>(its_partials, kSequences, sequence, its_unit, total);
      const Gates<FastFloat> gates = unit.step(now, t, unit.episodes.starts(), total);
      if (goes_on) {
        uint32_t* const to = row_of(word, (version + 1) % 2, buffer_bytes);
        send_hidden<Mma>(row_of(to, group, kGroupBytes), unit.hidden, its_unit,
                         phase_of(version + 1, kPhase));
      }
      states[group * kBlockThreads] = {unit.cell, widened(unit.hidden)};
      unit.emit(now, t, gates);  // what no other block waits for
    }
    if (!more) break;
    if (kPartialBuffers == 1) __syncthreads();
    if (is_last) {
      previous = now;
      now = next;
      next = timeline.rows_after(now, after_next, 1);
      after_next = timeline.load_rows(index + 3);
    }
    index = next_index;
    group = next_group;
    version = next_version;
    begins = next_begins;
    if (has_unit) move(group, ahead);
  }
  for (int group = 0; has_unit && first_of(group) < after_last; ++group) {
    move(group, {});
    unit.finish(p);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
