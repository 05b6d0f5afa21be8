// Forward on one block or on a cluster of blocks: a block has all four gates of its hidden units, a
// warp all of the depth of its rows. Free of torch.
//
//   block m of the cluster                          shared memory of every block
//   warp w: R row tiles of 4 units, 16 rows         operand [2][sequence tiles][depth, 8 sequences]
//     [16 R, H] weights, in registers                 h of step t | x of step t (input_tiles)
//              |                                             |
//              +---- 16 x 8 sums of each tile, all gates <---+
//              |
//     lane: one unit of one sequence for each row and sequence tile, its cell state in a register
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
// version v - 1. A version has all sequence tiles: the exchange hides behind what a warp stores and
// loads of both.
//
// Layers of a stack run at once, on block groups of their own: x is h of the layer before, awaited
// from its output (awaited.h). The threads of each block put it into the operand, in a cluster by
// store_async to their own block.
#pragma once

#include <type_traits>

#include "cuda/persistent/awaited.h"
#include "cuda/persistent/fragments.h"
#include "cuda/persistent/params.h"
#include "cuda/persistent/units.h"

namespace fused_lstm {
namespace cuda {
namespace {

template <class Mma, int kRowTiles, int kDepthTiles, int kInputTiles, int kSequenceTiles,
          bool kCluster, bool kRagged, int kResident>
__global__ void __launch_bounds__(kBlockThreads, 1)
    forward_kernel(const __grid_constant__ PersistentForwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  using Storage = typename Types::Storage;
  constexpr bool kStacked = kInputTiles == kDepthTiles;
  static_assert(!kCluster || kInputTiles == 0 || kStacked,
                "the input's elements need a barrier of the block");
  static_assert(!kStacked || (kRagged && kSequenceTiles == 1), "as they are compiled");
  static_assert(kSequenceTiles == 1 || kCluster, "a block by itself has one tile of sequences");
  constexpr int kTiles = kDepthTiles + kInputTiles;
  constexpr int kTileBytes = operand_bytes(kTiles, 1);  // of the operand of a tile of sequences
  constexpr int kBuffer = kSequenceTiles * kTileBytes;
  // Of sums that do not wait, of each tile.
  constexpr int kChains = kSequenceTiles * kRowTiles == 1 && kTiles >= 8 ? 4 : 2;
  constexpr int kPacked = 8 / Mma::kElementBytes;  // units that lanes share when they send
  static_assert(kPacked <= kTiledCluster, "with several tiles of sequences every lane sends");
  constexpr int kSends = kMaxCluster / kPacked;  // of a lane

  const Placement& placement = params.placement;
  const int blocks = kCluster ? placement.blocks : 1;
  const int member = kCluster ? blockIdx.x % blocks : 0, block_group = blockIdx.x / blocks;
  // A direction, of two at most, or a layer.
  const int part = kStacked ? block_group / placement.slices : block_group >= placement.slices;
  const int slice = block_group - part * placement.slices;
  const ForwardParams<Types>& p = params.layer[part];
  const Timeline<kRagged> timeline(p.steps);
  const int H = in_register(static_cast<int>(p.hidden_size)), T = timeline.length,
            B = timeline.batch;
  const int first_sequence = slice * placement.sequences;

  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  const int lane_unit = lane / 4 % kTileUnits;           // of a row tile
  const int lane_sequence = 2 * (lane % 4) + lane / 16;  // of each tile
  const bool low = lane < 16;
  const int first_unit = member * placement.units + warp * kRowTiles * kTileUnits;
  // The lane's sequences are kTileSequences apart, and so are their rows at each step.
  const auto rows_of = [&](int tile, const Rows& rows) {
    return Rows{rows.first + tile * kTileSequences, rows.count};
  };
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

  // Whether a stack's first layer has an input that does not fit into the operand.
  const bool made_ahead = kStacked && params.preactivations[part];
  ForwardUnit<Types, kRagged, kRowTiles <= 2> units[kSequenceTiles][kRowTiles];
  bool starts[kSequenceTiles][kRowTiles];  // whether an episode starts at the step
  Episodes<kRagged> first_episodes[kSequenceTiles][kRowTiles];
  Episodes<kRagged> episodes[kSequenceTiles];
#pragma unroll
  for (int tile = 0; tile < kSequenceTiles; ++tile) {
    const int b = first_sequence + tile * kTileSequences + warp;
    episodes[tile] = Episodes<kRagged>(p.boundaries, timeline, b);
  }
  constexpr int kInitial = kDepthTiles * Mma::kTileElements / kWarpThreads;  // elements of a lane
  Storage initial[kSequenceTiles][kInitial];
  const auto start_units = [&] {
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        auto& unit = units[tile][r];
        const int sequence = tile * kTileSequences + lane_sequence;  // of the slice
        unit.start(params, part, timeline, first_unit + r * kTileUnits + lane_unit,
                   first_sequence + sequence, has_rows(r) && sequence < placement.sequences);
        if (tile > 0) unit.share_arrays(units[0][r]);
        if (kInputTiles == 0 || made_ahead) unit.load(rows_of(tile, now));
        first_episodes[tile][r] = unit.episodes;
        first_episodes[tile][r].load_start(timeline, index);
        unit.episodes.load_start(timeline, index + 1);
      }
    }

    // Version 0 of the operand: the hidden state that enters the first step, zero where there is no
    // unit. Each warp has a sequence of each tile of it.
    static_assert(kBlockWarps == kTileSequences, "a warp for each sequence");
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
      const int sequence = tile * kTileSequences + warp, b = first_sequence + sequence;
      episodes[tile].load_start(timeline, 0);
#pragma unroll
      for (int i = 0; i < kInitial; ++i) {
        const int j = lane + i * kWarpThreads;
        initial[tile][i] = load_if(p.h_0 && sequence < placement.sequences && b < B && j < H,
                                   element_at(p.h_0, b, H, j));
      }
    }
  };

  // Row g of a row tile is gate g / kTileUnits of a unit.
  Fragments<Mma, kRowTiles, kTiles, kResident> weights(shared + params.layout.weights);
  const Storage* const weight_hh = params.weight_hh[part];
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
        const int size = params.input_size[part];
        load_vector<kStacked && kVectors, 4>(element_at(params.weight_ih[part], at, size, 0),
                                             depth - hidden_elements, exists ? size : 0, words);
      }
    });
  };
  // Where there are registers for it, all loads are in flight at once.
  constexpr bool kAtOnce = kRowTiles <= 2 && kResident <= 16;
  if (kAtOnce) start_units();
  if (params.fragments[part]) {
    weights.load(params.fragments[part], member);
  } else if (takes_vectors(weight_hh, H, 16) &&
             (!kStacked || takes_vectors(params.weight_ih[part], params.input_size[part], 16))) {
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
  const auto store_operand = [&](int tile, int version, int element, int sequence, Storage x) {
    char* const to = operand + version % 2 * kBuffer + tile * kTileBytes +
                     operand_offset(element, sequence, Mma::kElementBytes);
    if constexpr (Mma::kElementBytes == 2) {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(Mma::bits(x));
    } else {
      *reinterpret_cast<uint32_t*>(to) = Mma::bits(x);
    }
  };
#pragma unroll
  for (int tile = 0; tile < kSequenceTiles; ++tile) {
    const bool zero = episodes[tile].starts() && !p.boundaries.reset_to_initial;
#pragma unroll
    for (int i = 0; i < kInitial; ++i) {
      store_operand(tile, 0, lane + i * kWarpThreads, warp, zero ? Storage{} : initial[tile][i]);
    }
  }

  // The thread's element of the input, with input_tiles; of a stack its words, of kPacked elements
  // each, kWordRows sequences apart.
  constexpr int kInputElements = kInputTiles > 0 ? kInputTiles * Mma::kTileElements : 1;
  constexpr int kInputWidth = kInputElements / (kStacked ? kPacked : 1);
  const int input_sequence = threadIdx.x / kInputWidth;
  const int input_column = threadIdx.x % kInputWidth * (kStacked ? kPacked : 1);
  const int input_size = params.input_size[part];
  const bool takes_input = kInputTiles > 0 && input_sequence < placement.sequences &&
                           first_sequence + input_sequence < B && input_column < input_size;
  const Storage* const input = in_register(params.input[part]) +
                               offset_of(first_sequence + input_sequence, input_size) +
                               input_column;
  const int input_bytes = input_size * static_cast<int>(sizeof(Storage));
  const auto load_input = [&](const Rows& rows) {
    return load_if(takes_input && (!kRagged || first_sequence + input_sequence < rows.count),
                   row_of(input, rows.first, input_bytes));
  };
  const auto store_input = [&](int version, Storage x) {
    if (input_sequence < kTileSequences) {
      store_operand(0, version, kDepthTiles * Mma::kTileElements + input_column, input_sequence, x);
    }
  };

  constexpr int kWordRows = kBlockThreads / kInputWidth;
  constexpr int kThreadWords = kWordRows < kTileSequences ? kTileSequences / kWordRows : 1;
  uint2 words_ahead[kThreadWords];
  const auto load_words = [&](const Rows& rows) {
#pragma unroll
    for (int i = 0; i < kThreadWords; ++i) {
      const int sequence = input_sequence + i * kWordRows;  // of the slice
      const bool exists =
          takes_input && sequence < placement.sequences && first_sequence + sequence < rows.count;
      const Storage* const from = row_of(input, rows.first + i * kWordRows, input_bytes);
      words_ahead[i] =
          load_relaxed_if(exists, reinterpret_cast<const uint2*>(from), make_uint2(0, 0));
    }
    __syncwarp();  // keeps later loads behind
  };
  // Those of the step with `rows`, which have been loaded before. put(exists, at, words): where in
  // the operand.
  const auto store_words = [&](int version, const Rows& rows, const auto& put) {
    await(/*awaits=*/part > 0, [&] { load_words(rows); }, words_ahead);
#pragma unroll
    for (int i = 0; i < kThreadWords; ++i) {
      const int sequence = input_sequence + i * kWordRows;
      put(sequence < kTileSequences,
          version % 2 * kBuffer + operand_offset(kDepthTiles * Mma::kTileElements + input_column,
                                                 sequence, Mma::kElementBytes),
          make_uint2(Mma::word(words_ahead[i].x), Mma::word(words_ahead[i].y)));
    }
  };
  const auto put_into_block = [&](bool exists, int at, uint2 words) {
    if (exists) *reinterpret_cast<uint2*>(operand + at) = words;
  };
  const bool has_words = kStacked && input_size > 0;
  if (has_words) {
    load_words(now);
    store_words(0, now, put_into_block);
    load_words(index + 1 < T ? next : Rows{0, 0});
  }

#pragma unroll
  for (int tile = 0; tile < kSequenceTiles; ++tile) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      units[tile][r].finish_start(p);
      starts[tile][r] = first_episodes[tile][r].starts();
    }
  }

  // Where the lane sends: every kPacked-th block of the cluster.
  ClusterAddress destination[kSends];
  const ClusterAddress own_block = kCluster && kStacked ? cluster_address(shared, member) : 0;
  const unsigned sent_bytes =
      kSequenceTiles * kTileSequences * blocks * placement.units * Mma::kElementBytes +
      (has_words ? kTileSequences * kInputElements * Mma::kElementBytes : 0);
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
  if (kInputTiles > 0 && !kStacked) {
    store_input(0, load_input(now));
    if (index + 1 < T) input_ahead = load_input(next);
  }
  if (!kCluster) __syncthreads();

  // A warp without rows sends nothing that others would wait for, so that it could read a buffer
  // that is already being overwritten. In a stack's placements every warp has some.
  const bool takes_part = !kCluster || kStacked || has_rows(0);
  for (int version = 0; takes_part; ++version, ++index) {
    const int t = timeline.time(index);
    const bool more = index + 1 < T && (!kRagged || next.count > first_sequence);

    float sums[kSequenceTiles][kChains][kRowTiles][4] = {};
    const uint4* const from =
        reinterpret_cast<const uint4*>(operand + version % 2 * kBuffer) + lane;
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
#pragma unroll
      for (int pair = 0; pair < kTiles / 2; ++pair) {
        const uint4 words = from[tile * (kTileBytes / 16) + pair * kWarpThreads];
        weights.multiply(sums[tile][2 * pair % kChains], 2 * pair, words.x, words.y);
        weights.multiply(sums[tile][(2 * pair + 1) % kChains], 2 * pair + 1, words.z, words.w);
      }
    }

    Gates<FastFloat> gates[kSequenceTiles][kRowTiles];
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        auto& unit = units[tile][r];
        float all[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          all[i] = sums[tile][0][r][i];
#pragma unroll
          for (int chain = 1; chain < kChains; ++chain) all[i] += sums[tile][chain][r][i];
        }
        // Lanes below 16 have i and g of both sequences, the others f and o.
        const float first = __shfl_xor_sync(kFullMask, low ? all[1] : all[0], 16);
        const float second = __shfl_xor_sync(kFullMask, low ? all[3] : all[2], 16);
        const float own[4] = {low ? all[0] : first, low ? first : all[1], low ? all[2] : second,
                              low ? second : all[3]};
        float total[4];
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) total[gate] = own[gate] + unit.preactivation(gate);
        gates[tile][r] = unit.step(now, t, starts[tile][r], total);
        starts[tile][r] = unit.episodes.starts();  // at the next step
      }
    }
    // Of 16 bits: those of an even unit and the one after it.
    const auto of_pair = [&](uint32_t bits) {
      const uint32_t other = __shfl_xor_sync(kFullMask, bits, 4);
      return lane_unit % 2 ? other | bits << 16 : bits | other << 16;
    };
    // The words of h that the lane sends, of the units of kPacked lanes.
    uint2 words[kSequenceTiles][kRowTiles];
    const auto pack = [&](int r) {
#pragma unroll
      for (int tile = 0; tile < kSequenceTiles; ++tile) {
        const auto& unit = units[tile][r];
        const uint32_t word = Mma::bits(starts[tile][r] ? unit.first_hidden : unit.hidden);
        if constexpr (Mma::kElementBytes == 2) {
          const uint32_t pair = of_pair(word);
          const uint32_t rest = __shfl_xor_sync(kFullMask, pair, 8);
          words[tile][r] = lane_unit < 2 ? make_uint2(pair, rest) : make_uint2(rest, pair);
        } else {
          const uint32_t other = __shfl_xor_sync(kFullMask, word, 4);
          words[tile][r] = lane_unit % 2 ? make_uint2(other, word) : make_uint2(word, other);
        }
      }
    };
    if (kSequenceTiles > 1) {  // outside the branch, where shuffles of one tile hide another's
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) pack(r);
    }
    if (more) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const int element = first_unit + r * kTileUnits + lane_unit;
        if (!kCluster) {
          const Storage h = starts[0][r] ? units[0][r].first_hidden : units[0][r].hidden;
          if (has_rows(r)) store_operand(0, version + 1, element, lane_sequence, h);
          continue;
        }
        if (kSequenceTiles == 1) pack(r);
        const int at =
            operand_at + (version + 1) % 2 * kBuffer +
            operand_offset(element / kPacked * kPacked, lane_sequence, Mma::kElementBytes);
        const int barrier = barriers_at + (version + 1) % 2 * 8;
#pragma unroll
        for (int i = 0; i < kSends; ++i) {
          if (i * kPacked >= blocks) break;
          const bool exists = kSequenceTiles > 1 || lane_unit % kPacked + i * kPacked < blocks;
          if (exists && has_rows(r)) {
#pragma unroll
            for (int tile = 0; tile < kSequenceTiles; ++tile) {
              store_async(destination[i] + at + tile * kTileBytes, words[tile][r],
                          destination[i] + barrier);
            }
          }
        }
      }
      if (kInputTiles > 0 && !kStacked) store_input(version + 1, input_ahead);
      if (has_words) {
        store_words(version + 1, next, [&](bool exists, int at, uint2 words) {
          if (!kCluster) return put_into_block(exists, at, words);
          store_async(own_block + operand_at + at, words,
                      own_block + barriers_at + (version + 1) % 2 * 8, exists);
        });
      }
    }
    if (!kCluster) __syncthreads();

    // What no other thread waits for: results, and the next steps' operands.
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        auto& unit = units[tile][r];
        unit.template emit<!kStacked>(rows_of(tile, now), t, gates[tile][r]);
        if constexpr (kStacked) {
          const uint32_t word = Mma::stored(unit.emitted(now, t));
          if constexpr (Mma::kElementBytes == 2) {
            unit.emit_word(lane_unit % 2 == 0, now, of_pair(word));
          } else {
            unit.emit_word(true, now, word);
          }
        }
      }
    }
    if (!more) break;
    now = next;
    next = timeline.rows_after(now, after_next, 1);
    after_next = timeline.load_rows(index + 3);
    if (kInputTiles > 0 && !kStacked && index + 2 < T) input_ahead = load_input(next);
    if (has_words) load_words(index + 2 < T ? next : Rows{0, 0});
#pragma unroll
    for (int tile = 0; tile < kSequenceTiles; ++tile) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (kInputTiles == 0 || made_ahead) units[tile][r].load(rows_of(tile, now));
        units[tile][r].episodes.load_start(timeline, index + 2);
      }
    }
    if (kCluster) {
      uint64_t* const barrier = &barriers[(version + 1) % 2];
      barrier_wait(barrier, version / 2 % 2);
      if (threadIdx.x == 0) barrier_expect(barrier, sent_bytes);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kSequenceTiles; ++tile) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) units[tile][r].finish(p);
  }
  if (kCluster) {  // others may still send to this block
    cluster_arrive();
    cluster_wait();
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
