// Backward on the whole grid for large batches: scatter_backward.h, whose blocks take the sequences
// of their slice in groups of 8, one group after another in each step. While the sums of a group
// are on their way the block works on the others. Free of torch.
//
//   item: a step of one group, in the order (step, group)
//
//     thread: some (unit, sequence of the group), its state in shared memory: dL/dh is the sum of
//     all senders' words of the step before
//              |
//              +-- dL/da ---> operand [2][4 U, 8 sequences]; a barrier of the block
//                                  |
//     warp w: R row tiles of 16 units of the layer, [16 R, 4 U] weights, a few row tiles at a time
//              |
//              +-- partial sums of dL/dh ---> exchange [2][group, receiver, sender m, sequence,
//                                             unit]
//
// What an item reads of memory is loaded in the item before. So are its words, before the product's
// last row tiles: of two groups or more the words were sent an item ago or earlier. What has not
// come by the item's begin is loaded again until it has.
//
// Version v of a group's words comes from the v-th step and lies in buffer v % 2. Words of version
// v + 1 of a group replace those of v - 1, which have been read: a block sends v + 1 only when its
// threads have met with all words of version v of the group, of which every block has sent it some;
// and those blocks sent v when all of their threads had met with all words of v - 1, loaded ahead
// or not. What other groups' items do is in between: each block takes all items in one order, and
// an item waits for words of an earlier item alone, so that the first of the items that blocks are
// at never waits for ever.
//
// The operand of item n lies in buffer n % 2 and replaces that of n - 2: a thread that stores it
// has met the block's others in item n - 1, after which none multiplies n - 2. The state of a pair
// of unit and sequence is one thread's own: of the lanes that share it the first one's.
#pragma once

#include "cuda/persistent/scatter_backward.h"

namespace fused_lstm {
namespace cuda {
namespace {

template <class Mma, int kRowTiles, int kDepthTiles, int kResident>
__global__ void __launch_bounds__(kBlockThreads, 1) batched_backward_kernel(
    const __grid_constant__ PersistentBackwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  using Storage = typename Types::Storage;
  static_assert(kRowTiles % 2 == 0, "a lane sends four neighbouring rows of two tiles");
  constexpr bool kRagged = true;
  constexpr int kUnits = kDepthTiles * Mma::kTileElements / kGates;  // of a block
  constexpr int kPairs = kUnits * kTileSequences;                    // of unit and sequence
  static_assert(kPairs <= kBlockThreads, "a thread has a pair at most");
  // Where threads are left over, several lanes of a warp share a pair's senders.
  constexpr int kSharers = kBlockThreads / kPairs;
  static_assert(kSharers == 1 || kPairs * kSharers == kBlockThreads, "all threads have a pair");
  constexpr int kWarpPairs = kWarpThreads / kSharers;
  constexpr int kSenders = scatter_senders(kRowTiles, kUnits);
  constexpr int kSentUnits = 4;                                 // at once
  constexpr int kWords = (kSenders + kSharers - 1) / kSharers;  // of a thread
  constexpr int kStride = kSharers * kPairs;                    // from one of them to the next
  constexpr int kOperand = operand_bytes(kDepthTiles, 1);
  constexpr int kAtOnce = 4;  // row tiles

  const Placement& placement = params.placement;
  const int member = blockIdx.x % placement.blocks, block_group = blockIdx.x / placement.blocks;
  const int direction = block_group >= placement.slices;  // of two at most
  const int slice = block_group - direction * placement.slices;
  const BackwardParams<Types>& p = params.layer[direction];
  const Timeline<kRagged> timeline(p.steps);
  const int H = in_register(static_cast<int>(p.hidden_size));
  const int groups = (placement.sequences + kTileSequences - 1) / kTileSequences;
  const int first_sequence = slice * placement.sequences;
  const int first_unit = member * kUnits;
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;

  char* const shared = dynamic_shared();
  char* const operand = shared + params.layout.operand;
  const int buffer_bytes = in_register(4 * static_cast<int>(params.exchange_words));
  const int group_bytes = buffer_bytes / groups;
  uint32_t* const exchange = params.exchange + 2 * block_group * params.exchange_words;

  // The thread's pair; which of the lanes that share it the thread is.
  const int sharer = kSharers == 1 ? 0 : lane / kWarpPairs;
  const int pair =
      kSharers == 1 ? static_cast<int>(threadIdx.x) : warp * kWarpPairs + lane % kWarpPairs;
  const int unit = pair % kUnits, sequence = pair / kUnits;
  const bool has_pair = kPairs * kSharers == kBlockThreads || pair < kPairs;
  // dL/dh where a step is not valid, dL/dc, and those of the states that episodes have started
  // from.
  float4* const states = reinterpret_cast<float4*>(shared + params.layout.states) + pair;

  int index = timeline.length - 1;
  while (timeline.rows(index).count <= first_sequence) --index;
  Rows now = timeline.rows(index), next = timeline.rows(index - 1);
  typename Timeline<kRagged>::Loaded after_next;

  // Element 4 k + gate of the depth is a gate of the block's unit k.
  const int first_row = warp * kRowTiles * kTileRows;
  constexpr int kNeighbours = 2 * kNeighbourTiles<kRowTiles>;  // rows of a lane
  Fragments<Mma, kRowTiles, kDepthTiles, kResident> weights(shared + params.layout.weights);
  const Storage* const weight_hh = params.weight_hh[direction];
  const auto gather = [&](auto vectors) {
    constexpr bool kVectors = decltype(vectors)::value;
    weights.template gather_columns<kVectors>([&](int tile, int depth, uint32_t* words) {
      const int k = first_unit + depth / kGates;
      load_vector<kVectors, decltype(weights)::kColumnWords>(
          element_at(weight_hh, depth % kGates * H + k, H, 0),
          first_row + neighbour_row<kRowTiles>(tile, 0), k < H ? H : 0, words);
    });
  };
  if (takes_vectors(weight_hh, H, kNeighbours * Mma::kElementBytes)) {
    gather(std::true_type{});
  } else {
    gather(std::false_type{});
  }

  // Its sequence is the first group's. That of another group lies as many rows further in all
  // arrays, and is `load`ed so.
  BackwardUnit<Types, kRagged> its;
  its.start(p, timeline, now, first_unit + unit, first_sequence + sequence, sharer == 0);
  const int first = its.b, slice_end = first_sequence + placement.sequences;
  const int batch_end = slice_end < timeline.batch ? slice_end : timeline.batch;
  const auto rows_of = [&](const Rows& rows, int group) {
    const int before = group * kTileSequences;
    const int count = rows.count < slice_end ? rows.count : slice_end;
    return Rows{rows.first + before, has_pair ? count - before : 0};
  };
  Episodes<kRagged> after;  // of the step after the item's
  const auto load = [&](const Rows& rows, const Rows& previous, int index, int group) {
    after_next = timeline.load_rows(index - 2);
    const int b = first + group * kTileSequences;
    const Rows its_rows = rows_of(rows, group), its_previous = rows_of(previous, group);
    const bool has_previous = index > 0 && first < its_previous.count;
    its.episodes = after = Episodes<kRagged>(p.boundaries, timeline, b);
    its.episodes.load_start(timeline, index);
    after.load_start(timeline, index + 1);
    its.stored_initial_cell.load(p, b, H, its.j,
                                 its.present && (p.boundaries.reset_to_initial || !has_previous));
    its.cell =
        load_if(its.present && first < its_rows.count, row_of(its.cells, its_rows.first, 4 * H));
    its.load(its_rows, its_previous, index > 0);
  };
  load(now, next, index, 0);

  // States before the first item.
  const auto state_of = [](float grad_hidden, float grad_cell, float ended_hidden,
                           float ended_cell) {
    float4 state;
    state.x = grad_hidden;
    state.y = grad_cell;
    state.z = ended_hidden;
    state.w = ended_cell;
    return state;
  };
  for (int group = 0; group < groups && has_pair && sharer == 0; ++group) {
    const int b = first + group * kTileSequences;
    const bool exists = its.j < H && b < batch_end;
    states[group * kPairs] =
        state_of(load_if(exists && p.grad_hidden, element_at(p.grad_hidden, b, H, its.j)),
                 load_if(exists && p.grad_cell, element_at(p.grad_cell, b, H, its.j)), 0, 0);
  }

  // How many words of its pair the thread awaits.
  const int all_awaited = in_register(has_pair && its.j < round_up(H, kSentUnits)
                                          ? (placement.blocks - sharer + kSharers - 1) / kSharers
                                          : 0);

  // Where the lane's words go, those of its first row and sequence; and its own. Of the first group
  // and buffer.
  constexpr int kReceiver = kSenders * kPairs;  // words for one
  const auto words_of_row = [&](int row) { return row / kUnits * kReceiver + row % kUnits; };
  const int lane_row = first_row + neighbour_row<kRowTiles>(0, 0);
  uint32_t* const sent = in_register(exchange + member * kPairs + 2 * (lane % 4) * kUnits);
  const uint32_t* const received =
      in_register(exchange + member * kReceiver + sharer * kPairs + pair);
  const auto received_of = [&](int version, int group) {
    return row_of(row_of(received, version % 2, buffer_bytes), group, group_bytes);
  };

  uint32_t words[kWords] = {};  // of version - 1 of the item's group
  int awaited = 0;
  const uint32_t* from = received;
  int version = 1, group = 0;
  for (int item = 0;; ++item) {
    const int t = timeline.time(index);
    char* const its_operand = operand + item % 2 * kOperand;
    if (has_pair) {
      const Rows rows = rows_of(now, group);
      const float sum = sum_of_lanes<kWarpPairs>(
          finish_sum<kWords, kStride>(words, from, awaited, phase_of(version - 1, kFloatPhase)));
      float4* const state = states + group * kPairs;
      const float4 before = sharer == 0 ? *state : state_of(0, 0, 0, 0);
      its.grad_hidden = before.x + sum;
      its.grad_cell = before.y;
      its.ended_hidden = before.z;
      its.ended_cell = before.w;
      its.ends = after.starts();
      its.finish_start(p, rows, rows_of(next, group), index > 0);
      const Gates<FastFloat> grad = its.step(p, rows, t);
      const Storage grads[4] = {rounded<Storage>(grad.i.value), rounded<Storage>(grad.f.value),
                                rounded<Storage>(grad.g.value), rounded<Storage>(grad.o.value)};
      if (sharer == 0) {
        *state = state_of(its.grad_hidden, its.grad_cell, its.ended_hidden, its.ended_cell);
        store_gradients<Mma>(
            its_operand + operand_offset(unit * kGates, sequence, Mma::kElementBytes), grads);
      }
      its.emit(rows, grads);
    }

    // The item after this one. Past the last one of the slice no sequence has a step.
    const int sent_version = version, sent_group = group;
    const bool ends_step = group + 1 == groups;
    const bool more = !ends_step || (index > 0 && next.count > first_sequence);
    const Rows previous = timeline.rows_after(next, after_next, -1);
    group = ends_step ? 0 : group + 1;
    version += ends_step;
    index -= ends_step;
    now = ends_step ? next : now;
    next = ends_step ? previous : next;
    __syncthreads();
    load(more ? now : Rows{0, 0}, next, index, group);

    from = received_of(version - 1, group);
    awaited = version > 1 && more ? all_awaited : 0;
    uint32_t* const to =
        row_of(row_of(sent, sent_version % 2, buffer_bytes), sent_group, group_bytes);
    const uint32_t phase = phase_of(sent_version, kFloatPhase);
#pragma unroll
    for (int tile = 0; tile < kRowTiles; tile += kAtOnce) {
      constexpr int last = (kRowTiles - 1) / kAtOnce * kAtOnce;
      if (tile == last) load_sum<kWords, kStride>(words, from, awaited);
      if (first_row + tile * kTileRows >= H) continue;
      float sums[kAtOnce][4] = {};
      const uint4* const its_words = reinterpret_cast<const uint4*>(its_operand) + lane;
#pragma unroll
      for (int depth = 0; depth < kDepthTiles / 2; ++depth) {
        const uint4 vector = its_words[depth * kWarpThreads];
        weights.multiply(sums, 2 * depth, vector.x, vector.y, tile);
        weights.multiply(sums, 2 * depth + 1, vector.z, vector.w, tile);
      }
#pragma unroll
      for (int r = 0; r < kAtOnce && tile + r < kRowTiles; r += 2) {
        const int row = lane_row + (tile + r) * kTileRows;  // and the three after it
        uint32_t sent_words[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          sent_words[i % 2][i / 2] = float_word(__float_as_uint(sums[r + i / 4][i % 4]), phase);
        }
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          store_relaxed_if(
              row < H, reinterpret_cast<uint4*>(to + words_of_row(row) + s * kUnits),
              make_uint4(sent_words[s][0], sent_words[s][1], sent_words[s][2], sent_words[s][3]));
        }
      }
    }
    if (!more) break;
  }

  // The sums of the last step.
  if (!has_pair) return;
  for (group = 0; group < groups; ++group) {
    const uint32_t* const last = received_of(version - 1, group);
    load_sum<kWords, kStride>(words, last, all_awaited);
    const float sum = sum_of_lanes<kWarpPairs>(
        finish_sum<kWords, kStride>(words, last, all_awaited, phase_of(version - 1, kFloatPhase)));
    if (sharer != 0) continue;
    const float4 state = states[group * kPairs];
    its.b = first + group * kTileSequences;
    its.present = its.j < H && its.b < batch_end;
    its.grad_hidden = state.x + sum;
    its.grad_cell = state.y;
    its.ended_hidden = state.z;
    its.ended_cell = state.w;
    its.finish(p);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
