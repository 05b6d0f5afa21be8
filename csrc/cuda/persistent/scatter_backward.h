// Backward on the whole grid without clusters, for GPUs that have none (before compute capability
// 9.0) and where it is quicker: a block has the columns of its hidden units' gates, a warp all of
// their depth for some rows, the hidden units of the whole layer, as in backward.h; partial sums of
// dL/dh go to the block that has the units through global memory. Free of torch.
//
//   block m of the block group, its U hidden units
//     thread: some (unit, sequence): dL/dh, dL/dc in registers
//              |
//              +-- dL/da ---> operand [2][4 U, 8 sequences], in the block's own shared memory
//                                  |
//     warp w: R row tiles of 16 units of the layer, [16 R, 4 U] weights in registers
//              |
//              +-- partial sums of dL/dh ---> exchange [2][receiver, sender m, sequence, unit],
//                                             words in global memory
//     thread: dL/dh += the sum of all senders' words for its unit and sequence, in their order
//
// Version v of the operand and of the words comes from the v-th iteration and lies in buffer v % 2
// of either. The threads of a block meet once an iteration, between operand and product.
//
// Words of version v + 1 replace those of v - 1, which have been read: a block sends v + 1 only
// when its threads have met with all words of v, of which every block has sent it some, for every
// block has a unit of a sequence, and sends to all; and those blocks sent v when all of their
// threads had met with all words of v - 1. Words for units and sequences that the layer does not
// have are not awaited.
//
// The operand of version v + 1 replaces that of v - 1: a thread that stores it has met the block's
// others in iteration v, after which none multiplies version v - 1. A second buffer is needed as a
// warp whose rows are other blocks' units may still multiply version v when the block's own sums of
// it have come.
#pragma once

#include <type_traits>

#include "cuda/persistent/exchange.h"
#include "cuda/persistent/fragments.h"
#include "cuda/persistent/params.h"
#include "cuda/persistent/units.h"

namespace fused_lstm {
namespace cuda {
namespace {

// The gradients of a unit's gates as the operand's elements.
template <class Mma, class Storage>
__device__ __forceinline__ void store_gradients(char* to, const Storage (&grads)[4]) {
  uint32_t bits[4];
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) bits[gate] = Mma::bits(grads[gate]);
  if constexpr (Mma::kElementBytes == 2) {
    *reinterpret_cast<uint2*>(to) = make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
  } else {
    *reinterpret_cast<uint4*>(to) = make_uint4(bits[0], bits[1], bits[2], bits[3]);
  }
}

// Of lanes that are `apart` or a multiple of it apart.
template <int apart>
__device__ __forceinline__ float sum_of_lanes(float sum) {
#pragma unroll
  for (int other = apart; other < kWarpThreads; other *= 2) {
    sum += __shfl_xor_sync(kFullMask, sum, other);
  }
  return sum;
}

template <class Mma, int kRowTiles, int kDepthTiles, bool kRagged, int kResident>
__global__ void __launch_bounds__(kBlockThreads, 1) scatter_backward_kernel(
    const __grid_constant__ PersistentBackwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  using Storage = typename Types::Storage;
  static_assert(kRowTiles % 2 == 0, "a lane sends four neighbouring rows of two tiles");
  constexpr int kUnits = kDepthTiles * Mma::kTileElements / kGates;  // of a block
  constexpr int kPairs = kUnits * kTileSequences;  // of unit and sequence, of a block
  static_assert(kPairs <= kBlockThreads, "a thread has a pair at most");
  // Where threads are left over, several lanes of a warp share a pair's senders.
  constexpr int kSharers = kBlockThreads / kPairs;
  constexpr int kWarpPairs = kWarpThreads / kSharers;
  constexpr int kSenders = scatter_senders(kRowTiles, kUnits);
  constexpr int kSentUnits = 4;                                 // at once
  constexpr int kWords = (kSenders + kSharers - 1) / kSharers;  // of a thread
  constexpr int kChains = kRowTiles == 2 ? 2 : 1;
  constexpr int kOperand = operand_bytes(kDepthTiles, 1);
  static_assert(kSharers == 1 || kPairs * kSharers == kBlockThreads, "all threads have a pair");

  const Placement& placement = params.placement;
  const int member = blockIdx.x % placement.blocks, block_group = blockIdx.x / placement.blocks;
  const int direction = block_group >= placement.slices;  // of two at most
  const int slice = block_group - direction * placement.slices;
  const BackwardParams<Types>& p = params.layer[direction];
  const Timeline<kRagged> timeline(p.steps);
  const int H = in_register(static_cast<int>(p.hidden_size));
  const int first_sequence = slice * placement.sequences;
  const int first_unit = member * kUnits;
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;

  char* const shared = dynamic_shared();
  char* const operand = shared + params.layout.operand;
  const int buffer_bytes = in_register(4 * static_cast<int>(params.exchange_words));
  uint32_t* const exchange = params.exchange + 2 * block_group * params.exchange_words;

  int index = timeline.length - 1;
  if (kRagged) {
    while (timeline.rows(index).count <= first_sequence) --index;
  }
  Rows now = timeline.rows(index), next = timeline.rows(index - 1);
  auto after_next = timeline.load_rows(index - 2);

  // The thread's pair; which of the lanes that share it the thread is.
  const int sharer = kSharers == 1 ? 0 : lane / kWarpPairs;
  const int pair =
      kSharers == 1 ? static_cast<int>(threadIdx.x) : warp * kWarpPairs + lane % kWarpPairs;
  const int sequence = pair / kUnits, unit = pair % kUnits;
  const bool has_pair = kPairs * kSharers == kBlockThreads || pair < kPairs;
  BackwardUnit<Types, kRagged> its;
  const auto start_unit = [&] {
    its.start(p, timeline, now, first_unit + unit, first_sequence + sequence,
              sharer == 0 && sequence < placement.sequences);
    its.load(now, next, index > 0);
    its.episodes.load_start(timeline, index);
  };

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
  // Where there are registers for it, all loads are in flight at once.
  constexpr bool kAtOnce = kResident <= 16;
  if (kAtOnce) start_unit();
  if (takes_vectors(weight_hh, H, kNeighbours * Mma::kElementBytes)) {
    gather(std::true_type{});
  } else {
    gather(std::false_type{});
  }
  if (!kAtOnce) start_unit();

  // How many words of its pair the thread awaits.
  const int senders = (placement.blocks - sharer + kSharers - 1) / kSharers;
  const int awaited = in_register(its.j < round_up(H, kSentUnits) ? senders : 0);
  its.finish_start(p, now, next, index > 0);

  // Where the lane's words go, those of its first row and sequence; and its own.
  constexpr int kReceiver = kSenders * kPairs;  // words for one
  const auto words_of_row = [&](int row) { return row / kUnits * kReceiver + row % kUnits; };
  const int lane_row = first_row + neighbour_row<kRowTiles>(0, 0);
  uint32_t* const sent = in_register(exchange + member * kPairs + 2 * (lane % 4) * kUnits);
  const uint32_t* const received =
      in_register(exchange + member * kReceiver + sharer * kPairs + pair);

  for (int version = 1;; ++version, --index) {
    const int t = timeline.time(index);
    const uint32_t phase = phase_of(version, kFloatPhase);
    const int buffer = version % 2;  // of the exchange
    char* const its_operand = operand + version % 2 * kOperand;
    Storage grads[4];
    if (has_pair) {
      const Gates<FastFloat> grad = its.step(p, now, t);
      grads[0] = rounded<Storage>(grad.i.value);
      grads[1] = rounded<Storage>(grad.f.value);
      grads[2] = rounded<Storage>(grad.g.value);
      grads[3] = rounded<Storage>(grad.o.value);
      if (sharer == 0) {
        store_gradients<Mma>(
            its_operand + operand_offset(unit * kGates, sequence, Mma::kElementBytes), grads);
      }
    }
    __syncthreads();

    if (first_row < H) {
      uint32_t* const to = row_of(sent, buffer, buffer_bytes);
      float sums[kChains][kRowTiles][4] = {};
      const uint4* const from = reinterpret_cast<const uint4*>(its_operand) + lane;
#pragma unroll
      for (int pair = 0; pair < kDepthTiles / 2; ++pair) {
        const uint4 words = from[pair * kWarpThreads];
        weights.multiply(sums[2 * pair % kChains], 2 * pair, words.x, words.y);
        weights.multiply(sums[(2 * pair + 1) % kChains], 2 * pair + 1, words.z, words.w);
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; r += 2) {
        const int row = lane_row + r * kTileRows;  // and the three after it
        uint32_t words[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float sum = sums[0][r + i / 4][i % 4];
#pragma unroll
          for (int chain = 1; chain < kChains; ++chain) sum += sums[chain][r + i / 4][i % 4];
          words[i % 2][i / 2] = float_word(__float_as_uint(sum), phase);
        }
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          store_relaxed_if(row < H, reinterpret_cast<uint4*>(to + words_of_row(row) + s * kUnits),
                           make_uint4(words[s][0], words[s][1], words[s][2], words[s][3]));
        }
      }
    }

    // What no other thread waits for.
    const Rows previous = timeline.rows_after(next, after_next, -1);
    after_next = timeline.load_rows(index - 3);
    const bool more = index > 0 && (!kRagged || next.count > first_sequence);
    if (has_pair) {
      its.emit(now, grads);
      if (more) {
        its.load(next, previous, index > 1);
        its.episodes.load_start(timeline, index - 1);
      }
      const uint32_t* const from = row_of(received, buffer, buffer_bytes);
      its.grad_hidden +=
          sum_of_lanes<kWarpPairs>(receive_sum<kWords, kSharers * kPairs>(from, awaited, phase));
    }
    if (!more) break;
    now = next;
    next = previous;
  }
  its.finish(p);
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
