// Backward on the whole grid, in clusters of four blocks: block g of a cluster has the depth of
// gate g, a warp an eighth of it, for all hidden units of the cluster. Free of torch.
//
//   exchange [2][4 gates][depth, 8 sequences] words in global memory: dL/da, from every block
//              |
//     block g of a cluster, warp w: its eighth of gate g, straight into registers
//              |
//              +---- [16 R units, H / 8] weights, in registers: partial sums of dL/dh
//              |
//     partials [8 warps, sequences, 16 R] in shared memory; one barrier of the block
//              |
//     thread: the sum of 8 parts ---> received [g, sequence, unit] of the block of the cluster that
//                                     has the unit, by store_async
//     thread: some (unit, sequence) of the block's 4 R units: dL/dh is the sum of the 4 gates'
//     parts
//              |
//              +---- dL/da, four words ----> exchange
//
// Version v of the sums comes from version v of the exchange, and lies in buffer v % 2 of
// `received`, counted by barriers[v % 2]. Its buffer is free: a block sends version v after it has
// all words of version v, which every block has stored after it had read version v - 1 of the sums.
#pragma once

#include "cuda/persistent/grid_operand.h"
#include "cuda/persistent/units.h"

namespace fused_lstm {
namespace cuda {
namespace {

template <class Mma, int kRowTiles, int kDepthTiles, bool kRagged, int kResident>
__global__ void __launch_bounds__(kBlockThreads, 1) grid_backward_kernel(
    const __grid_constant__ PersistentBackwardParams<typename Mma::Types> params) {
  using Types = typename Mma::Types;
  using Storage = typename Types::Storage;
  constexpr int kRows = kRowTiles * kTileRows;     // hidden units of a cluster
  constexpr int kUnits = kRows / kGateBlocks;      // of a block
  constexpr int kPairs = kUnits * kTileSequences;  // of unit and sequence, of a block
  static_assert(kPairs <= kBlockThreads, "a thread has a pair at most");
  constexpr int kSums = kRows / 2 * kTileSequences;
  constexpr int kThreadSums = (kSums + kBlockThreads - 1) / kBlockThreads;
  constexpr int kGroupElements = 16;  // of each sequence, in 64 bytes of words
  constexpr int kGroups = kDepthTiles * Mma::kTileElements / kGroupElements;  // of a warp
  constexpr int kAtOnce = received_at_once(kGroups);
  constexpr int kDepth = kBlockWarps * kGroups * kGroupElements;  // H at most
  constexpr int kPartials = kBlockWarps * kTileSequences * partial_stride(kRowTiles);
  constexpr int kReceived = kGateBlocks * kPairs;  // floats of a buffer

  const Placement& placement = params.placement;
  const int member = blockIdx.x % placement.blocks, block_group = blockIdx.x / placement.blocks;
  const int direction = block_group >= placement.slices;  // of two at most
  const int slice = block_group - direction * placement.slices;
  const int gate = member % kGateBlocks, cluster = member / kGateBlocks;
  const BackwardParams<Types>& p = params.layer[direction];
  const Timeline<kRagged> timeline(p.steps);
  const int H = in_register(static_cast<int>(p.hidden_size));
  const int first_sequence = slice * placement.sequences;
  const int first_row = cluster * kRows, first_unit = first_row + gate * kUnits;
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;

  char* const shared = dynamic_shared();
  float* const partials = reinterpret_cast<float*>(shared + params.layout.partials);
  float* const received = reinterpret_cast<float*>(shared + params.layout.received);
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + params.layout.barriers);
  const int gate_bytes = in_register(static_cast<int>(params.exchange_words));  // 4 gates of words
  uint32_t* const exchange = in_register(params.exchange + 2 * block_group * params.exchange_words);

  // Where element `depth` of a warp's depth is in its words: mma.h's order for 16-bit elements, of
  // which a vector of words holds 4 rather than 8.
  const auto depth_of = [](int depth) {
    if constexpr (Mma::kElementBytes == 4) return depth;
    const int pair = depth / 32, q = depth % 32 / 8, tile = depth % 8 / 4;
    return (2 * pair + tile) * kGroupElements + 4 * q + depth % 4;
  };
  Fragments<Mma, kRowTiles, kDepthTiles, kResident> weights(shared + params.layout.weights);
  const Storage* const weight_hh = params.weight_hh[direction];
  constexpr int kNeighbours = 2 * kNeighbourTiles<kRowTiles>;  // rows of a lane
  const auto gather = [&](auto vectors) {
    constexpr bool kVectors = decltype(vectors)::value;
    weights.template gather_columns<kVectors>([&](int tile, int depth, uint32_t* words) {
      const int k = warp * kGroups * kGroupElements + depth_of(depth);
      load_vector<kVectors, decltype(weights)::kColumnWords>(
          element_at(weight_hh, gate * H + k, H, 0), first_row + neighbour_row<kRowTiles>(tile, 0),
          k < H ? H : 0, words);
    });
  };
  if (takes_vectors(weight_hh, H, kNeighbours * Mma::kElementBytes)) {
    gather(std::true_type{});
  } else {
    gather(std::false_type{});
  }

  // As in grid_forward.h: what no block sends meets weights of zero.
  int at[kGroups];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int group = warp * kGroups + i;
    const int element = group * kGroupElements + 4 * (lane % 4);
    at[i] = in_register(element < placement.blocks * kUnits ? group * kWarpThreads + lane
                                                            : lane / 4 * 4);
  }

  int index = timeline.length - 1;
  if (kRagged) {
    while (timeline.rows(index).count <= first_sequence) --index;
  }
  Rows now = timeline.rows(index), next = timeline.rows(index - 1);
  auto after_next = timeline.load_rows(index - 2);

  // The thread's pair, if it has one.
  const int unit = threadIdx.x % kUnits, sequence = threadIdx.x / kUnits;
  const bool has_pair = sequence < kTileSequences;
  const int element = first_unit + unit;
  BackwardUnit<Types, kRagged> its;
  its.start(p, timeline, now, element, first_sequence + sequence, sequence < placement.sequences);
  its.load(now, next, index > 0);
  its.episodes.load_start(timeline, index);
  // Of the exchange, of the first gate in the first buffer.
  uint32_t* const its_word =
      in_register(exchange + (element / kGroupElements * kWarpThreads + sequence * 4) * 4 +
                  element % kGroupElements);
  its.finish_start(p, now, next, index > 0);

  constexpr unsigned bytes = kReceived * 4;
  if (threadIdx.x == 0) {
    barrier_init(&barriers[0], 1);
    barrier_init(&barriers[1], 1);
    barrier_init_fence();
    barrier_expect(&barriers[1], bytes);
    barrier_expect(&barriers[0], bytes);
  }
  cluster_arrive();
  cluster_wait();

  // The GEMM of the step that was last: its words of all blocks, its sums into grad_hidden.
  const auto multiply = [&](int version) {
    float* const sums_of_warps = partials + version % 2 * kPartials;
    const uint4* const from =
        reinterpret_cast<const uint4*>(row_of(exchange, version % 2 * kGates + gate, gate_bytes));
    float sums[kRowTiles][4] = {};
#pragma unroll
    for (int first = 0; first < kGroups; first += kAtOnce) {
      uint4 words[kAtOnce];
      receive(from, at, first, phase_of(version, kFloatPhase), kFloatPhase, words);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int group = first + i;
        if constexpr (Mma::kElementBytes == 2) {  // the elements' bits are in the upper halves
          weights.multiply(sums, group, __byte_perm(words[i].x, words[i].y, 0x7632),
                           __byte_perm(words[i].z, words[i].w, 0x7632));
        } else {
          weights.multiply(sums, 2 * group, words[i].x, words[i].y);
          weights.multiply(sums, 2 * group + 1, words[i].z, words[i].w);
        }
      }
    }
    store_partials<kRowTiles>(sums_of_warps, kTileSequences, 0, sums);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < kThreadSums; ++i) {
      const int index = i * kBlockThreads + threadIdx.x;
      const int row = index % (kRows / 2) * 2, sequence = index / (kRows / 2);
      if (kSums % kBlockThreads != 0 && sequence >= kTileSequences) continue;
      float2 sum;
      sum.x = sum.y = 0;
#pragma unroll
      for (int part = 0; part < kBlockWarps; ++part) {
        const float2 each = *reinterpret_cast<const float2*>(
            sums_of_warps + (part * kTileSequences + sequence) * partial_stride(kRowTiles) + row);
        sum.x += each.x;
        sum.y += each.y;
      }
      const unsigned rank = row / kUnits;
      float* const to = received + version % 2 * kReceived +
                        (gate * kTileSequences + sequence) * kUnits + row % kUnits;
      store_async(cluster_address(to, rank),
                  make_uint2(__float_as_uint(sum.x), __float_as_uint(sum.y)),
                  cluster_address(&barriers[version % 2], rank));
    }

    barrier_wait(&barriers[version % 2], (version - 1) / 2 % 2);
    if (threadIdx.x == 0) barrier_expect(&barriers[version % 2], bytes);
    if (has_pair) {
      const float* const parts = received + version % 2 * kReceived + threadIdx.x;
      its.grad_hidden += (parts[0] + parts[kPairs]) + (parts[2 * kPairs] + parts[3 * kPairs]);
    }
  };

  for (int version = 1;; ++version, --index) {
    const int t = timeline.time(index);
    const uint32_t phase = phase_of(version, kFloatPhase);

    Storage grads[4];
    if (has_pair) {
      const Gates<FastFloat> grad = its.step(p, now, t);
      grads[0] = rounded<Storage>(grad.i.value);
      grads[1] = rounded<Storage>(grad.f.value);
      grads[2] = rounded<Storage>(grad.g.value);
      grads[3] = rounded<Storage>(grad.o.value);
      uint32_t* const to = row_of(its_word, version % 2 * kGates, gate_bytes);
      // Past the exchange's end the layer has no unit
#pragma unroll
      for (int i = 0; i < 4 && its.j < kDepth; ++i) {
        const uint32_t bits = Mma::bits(grads[i]);
        store_relaxed(row_of(to, i, gate_bytes),
                      float_word(Mma::kElementBytes == 2 ? bits << 16 : bits, phase));
      }
    }

    // What no other block waits for.
    const Rows previous = timeline.rows_after(next, after_next, -1);
    after_next = timeline.load_rows(index - 3);
    const bool more = index > 0 && (!kRagged || next.count > first_sequence);
    if (has_pair) {
      its.emit(now, grads);
      if (more) {
        its.load(next, previous, index > 1);
        its.episodes.load_start(timeline, index - 1);
      }
    }
    multiply(version);
    if (!more) break;
    now = next;
    next = previous;
  }
  its.finish(p);
  cluster_arrive();  // others of the cluster may still send to this block
  cluster_wait();
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
