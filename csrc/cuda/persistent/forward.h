// Forward on one block or on a cluster of blocks: a block has all four gates of its hidden units, a
// warp all of the depth of its rows. Free of torch.
//
//   block m of the cluster                             shared memory of every block
//   warp w: R row tiles of 4 units, 16 rows            operand [2][depth, 8 sequences]
//     [16 R, H] weights, in registers                    h of step t | x of step t (input_tiles)
//              |                                                |
//              +---- 16 x 8 sums of each tile, all gates <------+
//              |
//     lane: one unit of one sequence for each row tile, its cell state in a register
//              |
//              +---- h ----> operand of step t + 1, in every block of the cluster
//
// The rows of a tile are i, f, g, o of its 4 units, so that lanes l and l + 16 have the gates of a
// unit for two sequences; each takes one of them.
//
// Version v of the operand enters the step of iteration v and lies in buffer v % 2. Within a block
// threads meet after each step. In a cluster version v + 1 is stored by store_async: `barriers[v %
// 2]` counts its bytes. It may overwrite version v - 1, as a warp sends its part only when it has
// all of version v, which every warp of the cluster that reads has sent after its last use of
// version v - 1.
#pragma once

#include <type_traits>

#include "cuda/persistent/fragments.h"
#include "cuda/persistent/params.h"
#include "cuda/persistent/units.h"

namespace fused_lstm {
namespace cuda {
namespace {

template <class Mma, int kRowTiles, int kDepthTiles, int kInputTiles, bool kCluster, bool kRagged,
          int kResident>
__global__ void __launch_bounds__(kBlockThreads, 1)
    forward_kernel(const __grid_constant__ PersistentForwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  using Storage = typename Types::Storage;
  static_assert(!kCluster || kInputTiles == 0, "the input's elements need a barrier of the block");
  constexpr int kTiles = kDepthTiles + kInputTiles;
  constexpr int kBuffer = operand_bytes(kTiles, 1);
  constexpr int kChains = kRowTiles == 1 && kTiles >= 8 ? 4 : 2;  // of sums that do not wait
  constexpr int kPacked = 8 / Mma::kElementBytes;  // units that lanes share when they send
  constexpr int kSends = kMaxCluster / kPacked;    // of a lane

  const Placement& placement = params.placement;
  const int blocks = kCluster ? placement.blocks : 1;
  const int member = kCluster ? blockIdx.x % blocks : 0, block_group = blockIdx.x / blocks;
  const int direction = block_group >= placement.slices;  // of two at most
  const int slice = block_group - direction * placement.slices;
  const ForwardParams<Types>& p = params.layer[direction];
  const Timeline<kRagged> timeline(p.steps);
  const int H = in_register(static_cast<int>(p.hidden_size)), T = timeline.length,
            B = timeline.batch;
  const int first_sequence = slice * placement.sequences;

  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  const int lane_unit = lane / 4 % kTileUnits;           // of a row tile
  const int lane_sequence = 2 * (lane % 4) + lane / 16;  // of the slice
  const bool low = lane < 16;
  const int first_unit = member * placement.units + warp * kRowTiles * kTileUnits;
  // Whether row tile r of the warp has units.
  const int warp_tiles = placement.units / kTileUnits - warp * kRowTiles;
  const auto has_rows = [&](int r) { return r < warp_tiles; };

  char* const shared = dynamic_shared();
  char* const operand = shared + params.layout.operand;
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + params.layout.barriers);

  // Skips the steps that no sequence of the slice has: of a packed sequence, the first ones in the
  // reverse direction.
  int index = 0;
  if (kRagged) {
    while (timeline.rows(index).count <= first_sequence) ++index;
  }
  Rows now = timeline.rows(index), next = timeline.rows(index + 1);
  auto after_next = timeline.load_rows(index + 2);

  ForwardUnit<Types, kRagged, kRowTiles <= 2> units[kRowTiles];
  bool starts[kRowTiles];  // whether an episode starts at the step
  Episodes<kRagged> first_episodes[kRowTiles];
  Episodes<kRagged> episodes(p.boundaries, timeline, first_sequence + warp);
  constexpr int kInitial = kDepthTiles * Mma::kTileElements / kWarpThreads;  // elements of a lane
  Storage initial[kInitial];
  const auto start_units = [&] {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      units[r].start(params, direction, timeline, first_unit + r * kTileUnits + lane_unit,
                     first_sequence + lane_sequence,
                     has_rows(r) && lane_sequence < placement.sequences);
      if (kInputTiles == 0) units[r].load(now);
      first_episodes[r] = units[r].episodes;
      first_episodes[r].load_start(timeline, index);
      units[r].episodes.load_start(timeline, index + 1);
    }

    // Version 0 of the operand: the hidden state that enters the first step, zero where there is no
    // unit. Each warp has a sequence of it.
    static_assert(kBlockWarps == kTileSequences, "a warp for each sequence");
    episodes.load_start(timeline, 0);
#pragma unroll
    for (int i = 0; i < kInitial; ++i) {
      const int b = first_sequence + warp, j = lane + i * kWarpThreads;
      initial[i] = load_if(p.h_0 && warp < placement.sequences && b < B && j < H,
                           element_at(p.h_0, b, H, j));
    }
  };

  // Row g of a row tile is gate g / kTileUnits of a unit.
  Fragments<Mma, kRowTiles, kTiles, kResident> weights(shared + params.layout.weights);
  const Storage* const weight_hh = params.weight_hh[direction];
  const auto gather = [&](auto vectors) {
    constexpr bool kVectors = decltype(vectors)::value;
    weights.template gather<kVectors>([&](int tile, int half, int depth, uint32_t* words) {
      constexpr int hidden_elements = kDepthTiles * Mma::kTileElements;
      const int row = lane / 4 + 8 * half;
      const int unit = first_unit + tile * kTileUnits + row % kTileUnits;
      const int at = row / kTileUnits * H + unit;
      const bool exists = unit < H && has_rows(tile);
      if (depth < hidden_elements) {
        load_vector<kVectors, 4>(element_at(weight_hh, at, H, 0), depth, exists ? H : 0, words);
      } else {
        load_vector<false, 4>(element_at(params.weight_ih[direction], at, params.input_size, 0),
                              depth - hidden_elements, exists ? params.input_size : 0, words);
      }
    });
  };
  // Where there are registers for it, all loads are in flight at once.
  constexpr bool kAtOnce = kRowTiles <= 2 && kResident <= 16;
  if (kAtOnce) start_units();
  if (params.fragments[direction]) {
    weights.load(params.fragments[direction], member);
  } else if (takes_vectors(weight_hh, H, 16)) {
    gather(std::true_type{});
  } else {
    gather(std::false_type{});
  }
  if (!kAtOnce) start_units();

#pragma unroll
  for (int i = 0; i < kBuffer / 8; i += kBlockThreads) {
    const int at = i + static_cast<int>(threadIdx.x);
    if (at < kBuffer / 8) reinterpret_cast<uint4*>(operand)[at] = make_uint4(0, 0, 0, 0);
  }
  if (kCluster && threadIdx.x == 0) {
    barrier_init(&barriers[0], 1);
    barrier_init(&barriers[1], 1);
    barrier_init_fence();
  }
  __syncthreads();
  const auto store_operand = [&](int version, int element, int sequence, Storage x) {
    char* const to =
        operand + version % 2 * kBuffer + operand_offset(element, sequence, Mma::kElementBytes);
    if constexpr (Mma::kElementBytes == 2) {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(Mma::bits(x));
    } else {
      *reinterpret_cast<uint32_t*>(to) = Mma::bits(x);
    }
  };
  const bool zero = episodes.starts() && !p.boundaries.reset_to_initial;
#pragma unroll
  for (int i = 0; i < kInitial; ++i) {
    store_operand(0, lane + i * kWarpThreads, warp, zero ? Storage{} : initial[i]);
  }

  // The thread's element of the input, with input_tiles.
  constexpr int kInputElements = kInputTiles > 0 ? kInputTiles * Mma::kTileElements : 1;
  const int input_sequence = threadIdx.x / kInputElements;
  const int input_column = threadIdx.x % kInputElements;
  const int input_size = params.input_size;
  const bool takes_input = kInputTiles > 0 && input_sequence < placement.sequences &&
                           first_sequence + input_sequence < B && input_column < input_size;
  const Storage* const input = in_register(params.input) +
                               offset_of(first_sequence + input_sequence, input_size) +
                               input_column;
  const auto load_input = [&](const Rows& rows) {
    return load_if(takes_input && (!kRagged || first_sequence + input_sequence < rows.count),
                   row_of(input, rows.first, input_size * static_cast<int>(sizeof(Storage))));
  };
  const auto store_input = [&](int version, Storage x) {
    if (input_sequence < kTileSequences) {
      store_operand(version, kDepthTiles * Mma::kTileElements + input_column, input_sequence, x);
    }
  };

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    units[r].finish_start(p);
    starts[r] = first_episodes[r].starts();
  }

  // Where the lane sends: every kPacked-th block of the cluster.
  ClusterAddress destination[kSends];
  const unsigned sent_bytes = kTileSequences * blocks * placement.units * Mma::kElementBytes;
  if (kCluster) {
#pragma unroll
    for (int i = 0; i < kSends; ++i) {
      const int rank = lane_unit % kPacked + i * kPacked;
      destination[i] = cluster_address(shared, rank < blocks ? rank : 0);
    }
    if (threadIdx.x == 0) {
      barrier_expect(&barriers[1], sent_bytes);
      barrier_expect(&barriers[0], sent_bytes);
    }
    cluster_arrive();
    cluster_wait();
  }
  const int operand_at = in_register(params.layout.operand);
  const int barriers_at = in_register(params.layout.barriers);

  Storage input_ahead = {};
  if (kInputTiles > 0) {
    store_input(0, load_input(now));
    if (index + 1 < T) input_ahead = load_input(next);
  }
  if (!kCluster) __syncthreads();

  // A warp without rows sends nothing that others would wait for, so that it could read a buffer
  // that is already being overwritten.
  const bool takes_part = !kCluster || has_rows(0);
  for (int version = 0; takes_part; ++version, ++index) {
    const int t = timeline.time(index);
    const bool more = index + 1 < T && (!kRagged || next.count > first_sequence);

    float sums[kChains][kRowTiles][4] = {};
    const uint4* const from =
        reinterpret_cast<const uint4*>(operand + version % 2 * kBuffer) + lane;
#pragma unroll
    for (int pair = 0; pair < kTiles / 2; ++pair) {
      const uint4 words = from[pair * kWarpThreads];
      weights.multiply(sums[2 * pair % kChains], 2 * pair, words.x, words.y);
      weights.multiply(sums[(2 * pair + 1) % kChains], 2 * pair + 1, words.z, words.w);
    }

    Gates<FastFloat> gates[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float all[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        all[i] = sums[0][r][i];
#pragma unroll
        for (int chain = 1; chain < kChains; ++chain) all[i] += sums[chain][r][i];
      }
      // Lanes below 16 have i and g of both sequences, the others f and o.
      const float first = __shfl_xor_sync(kFullMask, low ? all[1] : all[0], 16);
      const float second = __shfl_xor_sync(kFullMask, low ? all[3] : all[2], 16);
      const float own[4] = {low ? all[0] : first, low ? first : all[1], low ? all[2] : second,
                            low ? second : all[3]};
      float total[4];
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) total[gate] = own[gate] + units[r].preactivation(gate);
      gates[r] = units[r].step(now, t, starts[r], total);
      starts[r] = units[r].episodes.starts();  // at the next step
    }
    if (more) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const Storage h = starts[r] ? units[r].first_hidden : units[r].hidden;
        const int element = first_unit + r * kTileUnits + lane_unit;
        if (!kCluster) {
          if (has_rows(r)) store_operand(version + 1, element, lane_sequence, h);
          continue;
        }
        uint32_t word = Mma::bits(h);
        uint2 words;
        if constexpr (Mma::kElementBytes == 2) {
          const uint32_t other = __shfl_xor_sync(kFullMask, word, 4);
          word = lane_unit % 2 ? other | word << 16 : word | other << 16;
          const uint32_t rest = __shfl_xor_sync(kFullMask, word, 8);
          words = lane_unit < 2 ? make_uint2(word, rest) : make_uint2(rest, word);
        } else {
          const uint32_t other = __shfl_xor_sync(kFullMask, word, 4);
          words = lane_unit % 2 ? make_uint2(other, word) : make_uint2(word, other);
        }
        const int at =
            operand_at + (version + 1) % 2 * kBuffer +
            operand_offset(element / kPacked * kPacked, lane_sequence, Mma::kElementBytes);
        const int barrier = barriers_at + (version + 1) % 2 * 8;
#pragma unroll
        for (int i = 0; i < kSends; ++i) {
          if (i * kPacked >= blocks) break;
          if (lane_unit % kPacked + i * kPacked < blocks && has_rows(r)) {
            store_async(destination[i] + at, words, destination[i] + barrier);
          }
        }
      }
      if (kInputTiles > 0) store_input(version + 1, input_ahead);
    }
    if (!kCluster) __syncthreads();

    // What no other thread waits for: results, and the next steps' operands.
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) units[r].emit(now, t, gates[r]);
    if (!more) break;
    now = next;
    next = timeline.rows_after(now, after_next, 1);
    after_next = timeline.load_rows(index + 3);
    if (kInputTiles > 0) {
      if (index + 2 < T) input_ahead = load_input(next);
    } else {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) units[r].load(now);
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) units[r].episodes.load_start(timeline, index + 2);
    if (kCluster) {
      uint64_t* const barrier = &barriers[(version + 1) % 2];
      barrier_wait(barrier, version / 2 % 2);
      if (threadIdx.x == 0) barrier_expect(barrier, sent_bytes);
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) units[r].finish(p);
  if (kCluster) {  // others may still send to this block
    cluster_arrive();
    cluster_wait();
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
