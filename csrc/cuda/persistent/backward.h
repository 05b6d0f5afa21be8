// Backward on one block or on a cluster of blocks: a block has the columns of its hidden units'
// gates, a warp all of their depth for some rows, the hidden units of the whole layer. Free of
// torch.
//
//   block m of the cluster, its U hidden units
//     thread: some (unit, sequence): dL/dh, dL/dc in registers
//              |
//              +-- dL/da ---> operand [2][sequence tiles][4 U, 8 sequences], in the block's own
//                                  |                                         shared memory
//     warp w: R row tiles of 16 units of the layer, [16 R, 4 U] weights in registers
//              |
//              +-- 16 x 8 partial sums of dL/dh of each tile ---> received [2][sequence tiles]
//                                                                 [m, U / 2, sequence, 2] of the
//                                                                 block that has the units
//     thread: dL/dh += the sum of `received` over the blocks, in their order
//
// Version v of the sums comes from the v-th iteration. Within a block threads meet after dL/da and
// after the sums. In a cluster version v is stored by store_async in buffer v % 2 and counted by
// barriers[v % 2]. It may overwrite version v - 2, as a block sends version v only when it has all
// of version v - 1, which every block has sent after it has read version v - 2. The operand of
// version v lies in buffer v % 2, too: a warp whose rows are other blocks' units may still multiply
// version v - 1 when the block's own sums of it have come, but not once it has met the block's
// threads again. A version has all sequence tiles.
//
// Layers of a stack run at once, on block groups of their own: dL/dh of a layer's output comes from
// dL/da of the layer after it, awaited (awaited.h), in the same sums. A thread puts that of its
// units into a second part of the operand, a step later than its own: version v has its own of the
// step that v is sent after, and the next layer's of the step that v is received for. Version 1 has
// only the latter.
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
    backward_kernel(const __grid_constant__ PersistentBackwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  using Storage = typename Types::Storage;
  constexpr bool kStacked = kInputTiles == kDepthTiles;
  static_assert(kStacked ? kRagged && kSequenceTiles == 1 : kInputTiles == 0, "as it is compiled");
  constexpr int kTiles = kDepthTiles + kInputTiles;
  constexpr int kUnits = kDepthTiles * Mma::kTileElements / kGates;  // of a block
  constexpr int kPairs = kUnits * kSequenceTiles * kTileSequences;   // of unit and sequence
  constexpr int kThreadUnits = (kPairs + kBlockThreads - 1) / kBlockThreads;
  // Of sums that do not wait, of each tile.
  constexpr int kChains = kSequenceTiles > 1 ? 1 : kRowTiles == 1 && kTiles >= 8 ? 4 : 2;
  constexpr int kTileBytes = operand_bytes(kTiles, 1);  // of the operand of a sequence tile
  constexpr int kOperand = kSequenceTiles * kTileBytes;
  constexpr int kOperands = kCluster ? 2 : 1;  // buffers
  // With several sequence tiles a thread has two neighbouring units of one sequence.
  constexpr bool kNeighbourUnits = kSequenceTiles > 1;
  static_assert(!kNeighbourUnits || (kCluster && kThreadUnits == 2 && kPairs == 2 * kBlockThreads),
                "two units of a thread are loaded at once");
  static_assert(!kNeighbourUnits || kTiledCluster * kUnits % (kRowTiles * kTileRows) == 0,
                "of a warp's rows all are units of the cluster's blocks, or none");

  const Placement& placement = params.placement;
  const int blocks = kCluster ? placement.blocks : 1;
  const int member = kCluster ? blockIdx.x % blocks : 0, block_group = blockIdx.x / blocks;
  // A direction, of two at most, or a layer.
  const int part = kStacked ? block_group / placement.slices : block_group >= placement.slices;
  const int slice = block_group - part * placement.slices;
  const BackwardParams<Types>& p = params.layer[part];
  const Timeline<kRagged> timeline(p.steps);
  const int H = in_register(static_cast<int>(p.hidden_size));
  const int first_sequence = slice * placement.sequences;
  const int first_unit = member * kUnits;
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;

  char* const shared = dynamic_shared();
  char* const operand = shared + params.layout.operand;
  float* const received = reinterpret_cast<float*>(shared + params.layout.received);
  // Floats of a tile of sequences, and of a version.
  const int received_tile = blocks * kUnits * kTileSequences;
  const int buffer = kSequenceTiles * received_tile;
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + params.layout.barriers);

  int index = timeline.length - 1;
  if (kRagged) {
    while (timeline.rows(index).count <= first_sequence) --index;
  }
  Rows now = timeline.rows(index), next = timeline.rows(index - 1);
  auto after_next = timeline.load_rows(index - 2);

  // The thread's i-th unit, of the block; its sequence, of the tile that it has.
  const auto unit_of = [](int i) {
    if (!kNeighbourUnits) {
      return (i * kBlockThreads + static_cast<int>(threadIdx.x)) / kTileSequences;
    }
    return static_cast<int>(threadIdx.x) / kTileSequences * 2 % kUnits + i;
  };
  const int tile_sequence = threadIdx.x % kTileSequences;
  const int tile = kNeighbourUnits ? threadIdx.x / (kBlockThreads / kSequenceTiles) : 0;
  BackwardUnit<Types, kRagged, kStacked> units[kThreadUnits];
  const auto start_units = [&] {
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) {
      const int unit = unit_of(i), sequence = tile * kTileSequences + tile_sequence;
      units[i].start(p, timeline, now, first_unit + unit, first_sequence + sequence,
                     unit < kUnits && sequence < placement.sequences);
      if (kNeighbourUnits && i > 0) units[i].share(units[0], i);
      units[i].load(now, next, index > 0);
      units[i].episodes.load_start(timeline, index);
    }
  };

  // Element 4 k + gate of the depth is a gate of the block's unit k.
  constexpr int kNeighbours = 2 * kNeighbourTiles<kRowTiles>;  // rows of a lane
  const auto lane_row = [&](int tile) {
    return warp * kRowTiles * kTileRows + neighbour_row<kRowTiles>(tile, 0);
  };
  Fragments<Mma, kRowTiles, kTiles, kResident> weights(shared + params.layout.weights);
  const Storage* const weight_hh = params.weight_hh[part];
  const Storage* const next_weight_ih = kStacked ? params.next_weight_ih[part] : nullptr;
  const auto gather = [&](auto vectors) {
    constexpr bool kVectors = decltype(vectors)::value;
    weights.template gather_columns<kVectors>([&](int tile, int depth, uint32_t* words) {
      constexpr int own_elements = kDepthTiles * Mma::kTileElements;
      const bool own = !kStacked || depth < own_elements;
      const Storage* const matrix = own ? weight_hh : next_weight_ih;
      const int element = own ? depth : depth - own_elements;
      const int k = first_unit + element / kGates;
      load_vector<kVectors, decltype(weights)::kColumnWords>(
          element_at(matrix, element % kGates * H + k, H, 0), lane_row(tile),
          matrix && k < H ? H : 0, words);
    });
  };
  // Where there are registers for it, all loads are in flight at once.
  constexpr bool kAtOnce = kThreadUnits == 1 && kResident <= 16;
  if (kAtOnce) start_units();
  if (takes_vectors(weight_hh, H, kNeighbours * Mma::kElementBytes) &&
      (!kStacked || takes_vectors(next_weight_ih, H, kNeighbours * Mma::kElementBytes))) {
    gather(std::true_type{});
  } else {
    gather(std::false_type{});
  }
  if (!kAtOnce) start_units();

#pragma unroll
  for (int i = 0; i < kThreadUnits; ++i) units[i].finish_start(p, now, next, index > 0);

  if (kCluster) {
    if (threadIdx.x == 0) {
      barrier_init(&barriers[0], 1);
      barrier_init(&barriers[1], 1);
      barrier_init_fence();
      barrier_expect(&barriers[1], buffer * 4);
      barrier_expect(&barriers[0], buffer * 4);
    }
    cluster_arrive();
    cluster_wait();
  }
  // The sums of the last GEMM, version `version`.
  const auto receive = [&](int version) {
    if (kCluster) {
      uint64_t* const barrier = &barriers[version % 2];
      barrier_wait(barrier, (version - 1) / 2 % 2);
      if (threadIdx.x == 0) barrier_expect(barrier, buffer * 4);
    }
    const float* const from = received + (kCluster ? version % 2 * buffer : 0);
    if constexpr (kNeighbourUnits) {
      const int at = tile * received_tile + unit_of(0) * kTileSequences + 2 * tile_sequence;
      float sum[2] = {};
#pragma unroll
      for (int first = 0; first < kMaxCluster; first += kTiledCluster) {
        if (first >= blocks) break;
        float2 both[kTiledCluster];
#pragma unroll
        for (int i = 0; i < kTiledCluster; ++i) {
          const int source = (first + i) * kUnits * kTileSequences;
          both[i] = *reinterpret_cast<const float2*>(from + source + at);
        }
#pragma unroll
        for (int i = 0; i < kTiledCluster; ++i) {
          sum[0] += both[i].x;
          sum[1] += both[i].y;
        }
      }
      units[0].grad_hidden += sum[0];
      units[1].grad_hidden += sum[1];
    } else {
#pragma unroll
      for (int i = 0; i < kThreadUnits; ++i) {
        const int pair = i * kBlockThreads + threadIdx.x;
        if (pair >= kUnits * kTileSequences) continue;
        const int unit = pair / kTileSequences, sequence = pair % kTileSequences;
        const int at = unit / 2 * 2 * kTileSequences + 2 * sequence + unit % 2;
        float sum = 0;
        if constexpr (kStacked && kCluster) {
          // Loads come before sums, of half a cluster and the other.
          const int half = blocks / 2 * kUnits * kTileSequences;
          float each[kMaxCluster / 2], rest[kMaxCluster / 2];
#pragma unroll
          for (int k = 0; k < kMaxCluster / 2; ++k) {
            const bool exists = 2 * k < blocks;
            each[k] = exists ? from[k * kUnits * kTileSequences + at] : 0.0f;
            rest[k] = exists ? from[half + k * kUnits * kTileSequences + at] : 0.0f;
          }
#pragma unroll
          for (int k = 0; k < kMaxCluster / 2; ++k) sum += each[k] + rest[k];
        } else {
#pragma unroll
          for (int source = 0; source < (kCluster ? kMaxCluster : 1); ++source) {
            if (source < blocks) sum += from[source * kUnits * kTileSequences + at];
          }
        }
        units[i].grad_hidden += sum;
      }
    }
  };

  // Puts the gradients of gates into the operand: of the thread's i-th unit, of the own layer (0)
  // or the next one (1).
  const auto put = [&](int version, int i, int layer, const Storage(&grad)[4]) {
    if (unit_of(i) >= kUnits) return;
    char* const to =
        operand + version % kOperands * kOperand + tile * kTileBytes +
        operand_offset((layer * kUnits + unit_of(i)) * kGates, tile_sequence, Mma::kElementBytes);
    uint32_t bits[4];
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) bits[gate] = Mma::bits(grad[gate]);
    if constexpr (Mma::kElementBytes == 2) {
      *reinterpret_cast<uint2*>(to) = make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
    } else {
      *reinterpret_cast<uint4*>(to) = make_uint4(bits[0], bits[1], bits[2], bits[3]);
    }
  };
  // Multiplies the operand, and sends the sums.
  const auto send = [&](int version) {
    __syncthreads();
    if (warp * kRowTiles * kTileRows < blocks * kUnits) {
      float sums[kSequenceTiles][kChains][kRowTiles][4] = {};
      const uint4* const from =
          reinterpret_cast<const uint4*>(operand + version % kOperands * kOperand) + lane;
#pragma unroll
      for (int pair = 0; pair < kTiles / 2; ++pair) {
#pragma unroll
        for (int s = 0; s < kSequenceTiles; ++s) {
          const uint4 words = from[s * (kTileBytes / 16) + pair * kWarpThreads];
          weights.multiply(sums[s][2 * pair % kChains], 2 * pair, words.x, words.y);
          weights.multiply(sums[s][(2 * pair + 1) % kChains], 2 * pair + 1, words.z, words.w);
        }
      }
      const int into = kCluster ? version % 2 * buffer : 0;
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const int unit = lane_row(r);  // and the one after it
#pragma unroll
        for (int s = 0; s < kSequenceTiles; ++s) {
          float each[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            each[i] = sums[s][0][r][i];
#pragma unroll
            for (int chain = 1; chain < kChains; ++chain) each[i] += sums[s][chain][r][i];
          }
          const int at = into + s * received_tile +
                         (member * kUnits + unit % kUnits) * kTileSequences + 4 * (lane % 4);
          const bool exists = kNeighbourUnits || unit < blocks * kUnits;
          if (kCluster) {
            const unsigned rank = exists ? unit / kUnits : 0;
            store_async(cluster_address(received + at, rank),
                        make_uint4(__float_as_uint(each[0]), __float_as_uint(each[2]),
                                   __float_as_uint(each[1]), __float_as_uint(each[3])),
                        cluster_address(&barriers[version % 2], rank), exists);
          } else if (exists) {
            float4 all;
            all.x = each[0];
            all.y = each[2];
            all.z = each[1];
            all.w = each[3];
            *reinterpret_cast<float4*>(received + at) = all;
          }
        }
      }
    }
    if (!kCluster) __syncthreads();
  };

  // The gradients of the next layer's gates at the step before.
  Storage next_grads[kThreadUnits][kGates];
  const bool awaits = kStacked && next_weight_ih;
  const auto load_next_layer = [&](const Rows& rows, bool exists) {
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) {
      const auto& unit = units[i];
      const Storage* const from =
          element_at(params.next_grad_preactivations[part], rows.first + unit.b, 4 * H, unit.j);
      const bool each = awaits && exists && unit.present && unit.b < rows.count;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        next_grads[i][gate] = load_relaxed_if(
            each, row_of(from, gate, H * static_cast<int>(sizeof(Storage))), Storage{});
      }
    }
  };
  // Those of the step with `rows`, which have been loaded before.
  const auto put_next_layer = [&](int version, const Rows& rows, bool exists) {
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) {
      await(awaits, [&] { load_next_layer(rows, exists); }, next_grads[i]);
      put(version, i, 1, next_grads[i]);
    }
  };
  if constexpr (kStacked) {
    load_next_layer(now, true);
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) put(1, i, 0, {});
    put_next_layer(1, now, true);
    load_next_layer(next, index > 0);
    send(1);
    receive(1);
  }

  for (int version = kStacked ? 2 : 1;; ++version, --index) {
    const int t = timeline.time(index);
    Storage grads[kThreadUnits][4];
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) {
      // Where an episode starts, nothing goes back to the step before.
      const bool ends = kStacked && units[i].episodes.starts();
      const Gates<FastFloat> grad = units[i].step(p, now, t);
      grads[i][0] = rounded<Storage>(grad.i.value);
      grads[i][1] = rounded<Storage>(grad.f.value);
      grads[i][2] = rounded<Storage>(grad.g.value);
      grads[i][3] = rounded<Storage>(grad.o.value);
      if (kStacked && ends) {
        put(version, i, 0, {});
      } else {
        put(version, i, 0, grads[i]);
      }
    }
    if (kStacked) put_next_layer(version, next, index > 0);
    send(version);

    // What no other thread waits for.
    const Rows previous = timeline.rows_after(next, after_next, -1);
    after_next = timeline.load_rows(index - 3);
#pragma unroll
    for (int i = 0; i < kThreadUnits; ++i) units[i].emit(now, grads[i]);
    const bool more = index > 0 && (!kRagged || next.count > first_sequence);
    if (more) {
#pragma unroll
      for (int i = 0; i < kThreadUnits; ++i) {
        units[i].load(next, previous, index > 1);
        units[i].episodes.load_start(timeline, index - 1);
      }
      if (kStacked) load_next_layer(previous, index > 1);
    }
    receive(version);
    if (!more) break;
    now = next;
    next = previous;
  }
#pragma unroll
  for (int i = 0; i < kThreadUnits; ++i) units[i].finish(p);
  if (kCluster) {  // others may still send to this block
    cluster_arrive();
    cluster_wait();
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
