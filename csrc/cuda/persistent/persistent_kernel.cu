#include <algorithm>

#include "cuda/persistent/exchange.h"
#include "cuda/persistent/launch_config.h"
#include "cuda/persistent/params.h"
#include "cuda/persistent/warp_gemm.h"

namespace fused_lstm {
namespace cuda {
namespace {

// Neighbouring elements, in one access.
template <class Element, int count>
struct alignas(count * sizeof(Element)) Elements {
  Element element[count];
};

// Of the hidden units and sequences that a thread carries through time, one.
struct Pair {
  int unit;      // in the block
  int sequence;  // in the slice; past its end if the thread has no such pair
};

// Forward and backward policies of `persistent_kernel`. `iter` is the iteration in processing order
// (reversed in time for the reverse direction and in backward); `j` is the hidden unit and `b` the
// batch index, both global to the layer.

template <class Tile_>
struct ForwardPass {
  using Tile = Tile_;
  using Types = typename Tile::Types;
  using V = typename Types::Accum;
  using Params = PersistentForwardParams<Types>;
  using Fetched = Gates<V>;  // preactivations
  using Sent = Elements<typename Tile::Element, kForwardShape.depth>;
  using Sums = Elements<float, kForwardShape.rows>;
  static constexpr UnitShape shape = kForwardShape;
  static constexpr bool sends_first = true;  // the initial hidden state
  static constexpr int extra_iterations = 0;

  struct State {
    V cell;
    typename Types::Operand hidden;
    Gates<V> bias;
  };

  const ForwardParams<Types>& p;
  const V* preactivations;  // [N, 4H]
  const typename Types::Storage* bias_ih;
  const typename Types::Storage* bias_hh;

  __device__ ForwardPass(const Params& params, int direction)
      : p(params.layer[direction]),
        preactivations(params.preactivations[direction]),
        bias_ih(params.bias_ih[direction]),
        bias_hh(params.bias_hh[direction]) {}

  // Where weight_hh has what row `row` of unit j takes from part `part` of unit k.
  static __device__ int64_t weight(int64_t H, int64_t j, int row, int64_t k, int /*part*/) {
    return (row * H + j) * H + k;
  }
  // The sequences of an iteration's GEMM and of what it sends; `now` have this step, `before` and
  // `after` the ones around it.
  static __device__ int to_multiply(int now, int /*before*/) { return now; }
  static __device__ int to_send(int /*now*/, int after) { return after; }

  __device__ Step step(int64_t iter) const { return make_step(p.steps, iter); }

  __device__ State start(int64_t b, int64_t j) const {
    State state = {load_cell<V>(p.c_0, b * p.hidden_size + j, 1), {}, {}};
    store<V>(&state.hidden, first_hidden<V>(p, step(0), b, j, 1), 1);
    if (bias_ih) state.bias = add(state.bias, load_gates<V>(bias_ih, p.hidden_size, j, 1));
    if (bias_hh) state.bias = add(state.bias, load_gates<V>(bias_hh, p.hidden_size, j, 1));
    return state;
  }
  __device__ Fetched fetch(const Step& step, int64_t b, int64_t j) const {
    const int64_t H = p.hidden_size;
    return load_gates<V>(preactivations + (step.offset + b) * 4 * H, H, j, 1);
  }
  __device__ void add_gemm(const Sums&, State&) const {}
  __device__ void take(const Step& step, int64_t b, int64_t j, const Sums& sums,
                       const Fetched& fetched, State& state) const {
    const Gates<V> product = {sums.element[0], sums.element[1], sums.element[2], sums.element[3]};
    const Gates<V> sum = add(add(product, fetched), state.bias);
    const Updated<V> updated = update_cell<V>(p, step, b, j, sum, &state.cell, 1);
    update_hidden<V>(p, step, b, j, updated, &state.hidden, &state.hidden, 1);
  }
  __device__ Sent sent(const State& state) const { return {Tile::number(state.hidden)}; }
  __device__ void finish(int64_t, int64_t, const State&) const {}
};

template <class Tile_>
struct BackwardPass {
  using Tile = Tile_;
  using Types = typename Tile::Types;
  using V = typename Types::Accum;
  using Params = PersistentBackwardParams<Types>;
  struct Fetched {
    Saved<V> saved;
    V grad_output;
  };
  using Sent = Elements<typename Tile::Element, kBackwardShape.depth>;
  using Sums = Elements<float, kBackwardShape.rows>;
  static constexpr UnitShape shape = kBackwardShape;
  static constexpr bool sends_first = false;
  static constexpr int extra_iterations = 1;  // the GEMM of the first step

  struct State {
    V grad_hidden, grad_cell;
    Sent grad_preactivations;
  };

  const BackwardParams<Types>& p;

  __device__ BackwardPass(const Params& params, int direction) : p(params.layer[direction]) {}

  static __device__ int64_t weight(int64_t H, int64_t j, int /*row*/, int64_t k, int part) {
    return (part * H + k) * H + j;
  }
  static __device__ int to_multiply(int /*now*/, int before) { return before; }
  static __device__ int to_send(int now, int /*after*/) { return now; }

  __device__ Step step(int64_t iter) const {
    return iter < p.steps.length ? make_step(p.steps, p.steps.length - 1 - iter) : Step{};
  }

  __device__ State start(int64_t b, int64_t j) const {
    const int64_t state = b * p.hidden_size + j;
    return {p.grad_hidden[state], p.grad_cell[state], {}};
  }
  __device__ Fetched fetch(const Step& step, int64_t b, int64_t j) const {
    save_h_prev<V>(p, step, b, j, 1);
    return {load_saved<V>(p, step, b, j, 1), load_grad_output<V>(p, step, b, j, 1)};
  }
  __device__ void add_gemm(const Sums& sums, State& state) const {
    state.grad_hidden += sums.element[0];
  }
  __device__ void take(const Step& step, int64_t b, int64_t j, const Sums&, const Fetched& fetched,
                       State& state) const {
    const V grad =
        collect_grad_hidden<V>(p, step, b, j, fetched.grad_output, &state.grad_hidden, 1);
    const Gates<V> gates =
        backward_units<V>(p, step, b, j, grad, fetched.saved, &state.grad_cell, 1);
    const V values[4] = {gates.i, gates.f, gates.g, gates.o};
    for (int gate = 0; gate < 4; ++gate) {
      typename Types::Operand rounded;
      store<V>(&rounded, values[gate], 1);
      state.grad_preactivations.element[gate] = Tile::number(rounded);
    }
  }
  __device__ Sent sent(const State& state) const { return state.grad_preactivations; }
  __device__ void finish(int64_t b, int64_t j, const State& state) const {
    p.grad_hidden[b * p.hidden_size + j] = state.grad_hidden;
    p.grad_cell[b * p.hidden_size + j] = state.grad_cell;
  }
};

// The recurrent weights of one warp, in registers as far as they fit, and its GEMMs.
template <class Pass>
class WarpGemm {
  using Tile = typename Pass::Tile;
  using Weight = typename Pass::Types::Storage;

 public:
  __device__ WarpGemm(const SharedLayout& layout, char* shared, const Weight* weight_hh,
                      int64_t hidden_size, int64_t first_unit)
      : layout_(layout), lane_(threadIdx.x % kWarpThreads) {
    const int warp = threadIdx.x / kWarpThreads;
    group_ = warp % layout.groups;
    split_ = warp / layout.groups;
    first_depth_ = split_ * layout.split_depth;
    depth_ = layout.depth_tiles - first_depth_;
    depth_ = depth_ < 0 ? 0 : depth_ < layout.split_depth ? depth_ : layout.split_depth;
    const int tiles = (layout.row_tiles - group_ + layout.groups - 1) / layout.groups;
    fragments_ = tiles * depth_;
    spilled_ = reinterpret_cast<Fragment*>(shared + layout.weights) + threadIdx.x;
    const Gathering gathering = {weight_hh,    hidden_size, first_unit, lane_,        group_,
                                 first_depth_, depth_,      fragments_, layout.groups};
#pragma unroll
    for (int f = 0; f < Tile::resident; f += gathered_at_once) {
      if (f >= fragments_) break;
      const FewFragments few = gather(gathering, f);
#pragma unroll
      for (int i = 0; i < gathered_at_once; ++i) resident_[f + i] = few.fragment[i];
    }
#pragma unroll 1
    for (int f = Tile::resident; f < fragments_; f += gathered_at_once) {
      const FewFragments few = gather(gathering, f);
      for (int i = 0; i < gathered_at_once && f + i < fragments_; ++i) {
        spilled_[(f + i - Tile::resident) * kBlockThreads] = few.fragment[i];
      }
    }
  }

  // The warp's part of the block's GEMM with the operand of the first `tiles` tiles of
  // sequences, into `partials` [splits, all_sequences, partial_stride].
  __device__ void multiply(const char* operand, int tiles, int all_sequences,
                           char* partials) const {
    partials += split_ * all_sequences * layout_.partial_stride;
    for (int tile = 0; tile < tiles; tile += tiles_at_once) {
      const int sequence = tile * kTileSequences;
      multiply_tiles(operand + sequence * layout_.operand_stride, tiles - tile > 1,
                     partials + sequence * layout_.partial_stride);
    }
  }

 private:
  // Two tiles of sequences, or one: two independent chains of sums, and each fragment that lies in
  // shared memory read once for both.
  __device__ void multiply_tiles(const char* operand, bool two, char* to) const {
    typename Tile::Sums sums[tiles_at_once] = {};
    const int second_operand = kTileSequences * layout_.operand_stride;
    const int second_sums = kTileSequences * layout_.partial_stride;
    operand += first_depth_ * kDepthBytes;
    to += group_ * kTileRows * static_cast<int>(sizeof(float));
    int depth = 0;
    const auto take = [&](const Fragment& weights) {
      const char* const at = operand + depth * kDepthBytes;
      Tile::multiply(sums[0], weights, at, layout_.operand_stride, lane_);
      if (two) Tile::multiply(sums[1], weights, at + second_operand, layout_.operand_stride, lane_);
      if (++depth < depth_) return;
      Tile::store(sums[0], to, layout_.partial_stride, lane_);
      if (two) Tile::store(sums[1], to + second_sums, layout_.partial_stride, lane_);
      for (auto& of_tile : sums) {
        for (float& sum : of_tile) sum = 0;
      }
      depth = 0;
      to += layout_.groups * kTileRows * static_cast<int>(sizeof(float));
    };
#pragma unroll
    for (int f = 0; f < Tile::resident; ++f) {
      if (f < fragments_) take(resident_[f]);
    }
#pragma unroll 1
    for (int f = Tile::resident; f < fragments_; ++f) {
      take(spilled_[(f - Tile::resident) * kBlockThreads]);
    }
  }

  static constexpr int gathered_at_once = 4;
  static_assert(Tile::resident % gathered_at_once == 0, "whole gatherings fill the registers");

  struct FewFragments {
    Fragment fragment[gathered_at_once];
  };
  struct Gathering {
    const Weight* weight_hh;
    int64_t hidden_size, first_unit;
    int lane, group, first_depth, depth, fragments, groups;
  };

  // Fragments f, .. of a warp; zero beyond its last, and where the layer has no unit. Several at a
  // time, so that their loads are in flight together. `noinline`: runs only at launch, so code size
  // matters more than call overhead. `static`: passing `this` would force the fragments out of
  // registers into local memory.
  __attribute__((noinline)) static __device__ FewFragments gather(const Gathering& g, int f) {
    using Element = typename Tile::Element;
    constexpr int each = 4 / sizeof(Element);  // elements of a word
    FewFragments few = {};
#pragma unroll
    for (int i = 0; i < gathered_at_once; ++i) {
      if (f + i >= g.fragments) break;
      const int row_tile = g.group + (f + i) / g.depth * g.groups;
      const int depth_tile = g.first_depth + (f + i) % g.depth;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const WordPlace place = Tile::place(g.lane, w);
        const int row = row_tile * kTileRows + place.row;
        const int64_t j = g.first_unit + row / Pass::shape.rows;
        Element elements[each] = {};
#pragma unroll
        for (int e = 0; e < each; ++e) {
          const int depth = (depth_tile * 8 + place.word) * each + e;
          const int64_t k = depth / Pass::shape.depth;
          if (j >= g.hidden_size || k >= g.hidden_size) continue;
          elements[e] = Tile::number(g.weight_hh[Pass::weight(
              g.hidden_size, j, row % Pass::shape.rows, k, depth % Pass::shape.depth)]);
        }
        few.fragment[i].word[w] = bits_as<uint32_t>(elements);
      }
    }
    return few;
  }

  static constexpr int tiles_at_once = 2;

  const SharedLayout& layout_;
  Fragment resident_[Tile::resident];
  Fragment* spilled_;  // shared [fragments beyond those, threads]
  int lane_, group_, split_, first_depth_, depth_, fragments_;
};

// All steps of one block group's part of a layer: some sequences of one direction.
template <class Pass>
__global__ void __launch_bounds__(kBlockThreads, 1)
    persistent_kernel(const __grid_constant__ typename Pass::Params params) {
  using Element = typename Pass::Tile::Element;
  using Sums = typename Pass::Sums;
  const Placement& placement = params.placement;
  const SharedLayout& layout = params.layout;
  char* const shared = dynamic_shared();

  const int member = blockIdx.x % placement.blocks, block_group = blockIdx.x / placement.blocks;
  const int slice = block_group % placement.slices, direction = block_group / placement.slices;
  const Pass pass(params, direction);
  const int64_t H = pass.p.hidden_size;
  const int64_t first_unit = static_cast<int64_t>(member) * placement.units;
  const int64_t first_sequence = static_cast<int64_t>(slice) * placement.sequences;
  // What of a count the block's range has.
  const auto within = [](int64_t all, int64_t first, int size) {
    return static_cast<int>(all <= first ? 0 : all - first < size ? all - first : size);
  };
  const int units = within(H, first_unit, placement.units);
  const int sequences = within(pass.p.steps.batch, first_sequence, placement.sequences);
  const int all_sequences = static_cast<int>(round_up(placement.sequences, kTileSequences));

  Exchange exchange = {params.kernel, placement.blocks, shared + layout.operand,
                       layout.operand_bytes, layout.operand_stride};
  if (params.kernel == Kernel::grid) {
    exchange.global =
        reinterpret_cast<char*>(params.exchange + 2 * block_group * params.exchange_size);
    exchange.global_bytes = params.exchange_size * static_cast<int64_t>(sizeof(Element));
    exchange.global_stride = kDepthBytes * layout.depth_tiles;
    exchange.arrived = params.arrived + block_group * kCounterStride;
  }
  const WarpGemm<Pass> product(layout, shared, params.weight_hh[direction], H, first_unit);
  char* const partials = shared + layout.partials;
  exchange.start();

  Pair pairs[kMaxPairs];
  typename Pass::State states[kMaxPairs];
#pragma unroll
  for (int i = 0; i < kMaxPairs; ++i) {
    const int index = i * kBlockThreads + static_cast<int>(threadIdx.x);
    pairs[i] = index < units * sequences ? Pair{index % units, index / units}
                                         : Pair{0, placement.sequences};
  }
  // Calls body(i, j, b) for the thread's pairs of the first `count` sequences.
  const auto for_pairs = [&](int count, const auto& body) {
#pragma unroll
    for (int i = 0; i < kMaxPairs; ++i) {
      if (pairs[i].sequence < count) {
        body(i, first_sequence + pairs[i].sequence, first_unit + pairs[i].unit);
      }
    }
  };
  const auto send = [&](int count) {
    if (count == 0) return;
    for_pairs(count, [&](int i, int64_t, int64_t j) {
      exchange.send(pairs[i].sequence, static_cast<int>(j) * Pass::shape.depth,
                    pass.sent(states[i]));
    });
    exchange.finish_sending();
  };

  for_pairs(sequences, [&](int i, int64_t b, int64_t j) { states[i] = pass.start(b, j); });
  if (Pass::sends_first) send(sequences);

  int before = 0;  // sequences that had the last iter's step
  for (int64_t iter = 0; iter < pass.p.steps.length + Pass::extra_iterations; ++iter) {
    const Step step = pass.step(iter);
    const int now = within(step.rows, first_sequence, sequences);
    const int after = within(step.next_rows, first_sequence, sequences);
    const int multiplied = Pass::to_multiply(now, before);
    if (now == 0 && multiplied == 0) continue;

    typename Pass::Fetched fetched[kMaxPairs];  // on its way while the others still send
    for_pairs(now, [&](int i, int64_t b, int64_t j) { fetched[i] = pass.fetch(step, b, j); });
    for (int first = 0; first < multiplied; first += placement.staged) {
      const int count = within(multiplied, first, placement.staged);
      product.multiply(exchange.receive(first, count),
                       (count + kTileSequences - 1) / kTileSequences, all_sequences,
                       partials + first * layout.partial_stride);
      __syncthreads();
    }
    for_pairs(now > multiplied ? now : multiplied, [&](int i, int64_t b, int64_t j) {
      Sums sums = {};
      if (pairs[i].sequence < multiplied) {
        const char* from = partials + pairs[i].sequence * layout.partial_stride +
                           pairs[i].unit * static_cast<int>(sizeof(Sums));
        for (int split = 0; split < layout.splits; ++split) {
          const Sums part = *reinterpret_cast<const Sums*>(from);
          for (int row = 0; row < Pass::shape.rows; ++row) sums.element[row] += part.element[row];
          from += all_sequences * layout.partial_stride;
        }
        pass.add_gemm(sums, states[i]);
      }
      if (pairs[i].sequence < now) pass.take(step, b, j, sums, fetched[i], states[i]);
    });
    send(Pass::to_send(now, after));
    before = now;
  }
  for_pairs(sequences, [&](int i, int64_t b, int64_t j) { pass.finish(b, j, states[i]); });
}

template <class Pass>
cudaError_t launch_pass(const typename Pass::Params& params, cudaStream_t stream) {
  const Placement& placement = params.placement;
  const bool in_clusters = params.kernel == Kernel::cluster;
  // The blocks of a grid wait for one another.
  const Together together = {in_clusters ? placement.blocks : 0, params.kernel == Kernel::grid};
  return launch(persistent_kernel<Pass>, params,
                static_cast<int64_t>(params.directions) * placement.slices * placement.blocks,
                kBlockThreads, params.layout.total, together, stream);
}

// The tile of a layer stored as Types.
template <class Types, class Body>
cudaError_t with_tile(bool tensor_cores, const Body& body) {
  if constexpr (sizeof(typename Types::Operand) == sizeof(float)) {
    if (!tensor_cores) return body(ScalarTile{});
  }
  return body(TensorTile<Types>{});
}

constexpr int kUploadCount = 256;
struct Upload {
  int64_t number[kUploadCount];
};

__global__ void __launch_bounds__(kUploadCount)
    upload_kernel(const __grid_constant__ Upload from, int count, int64_t* to) {
  if (static_cast<int>(threadIdx.x) < count) to[threadIdx.x] = from.number[threadIdx.x];
}

}  // namespace

template <class Types>
cudaError_t launch_forward(const PersistentForwardParams<Types>& params, bool tensor_cores,
                           cudaStream_t stream) {
  return with_tile<Types>(tensor_cores, [&](auto tile) {
    return launch_pass<ForwardPass<decltype(tile)>>(params, stream);
  });
}

template <class Types>
cudaError_t launch_backward(const PersistentBackwardParams<Types>& params, bool tensor_cores,
                            cudaStream_t stream) {
  return with_tile<Types>(tensor_cores, [&](auto tile) {
    return launch_pass<BackwardPass<decltype(tile)>>(params, stream);
  });
}

template cudaError_t launch_forward(const PersistentForwardParams<Float>&, bool, cudaStream_t);
template cudaError_t launch_forward(const PersistentForwardParams<HalfFloat>&, bool, cudaStream_t);
template cudaError_t launch_forward(const PersistentForwardParams<BFloat16Float>&, bool,
                                    cudaStream_t);
template cudaError_t launch_backward(const PersistentBackwardParams<Float>&, bool, cudaStream_t);
template cudaError_t launch_backward(const PersistentBackwardParams<HalfFloat>&, bool,
                                     cudaStream_t);
template cudaError_t launch_backward(const PersistentBackwardParams<BFloat16Float>&, bool,
                                     cudaStream_t);

void ask_driver(Gpu& gpu) {
  const auto kernel = persistent_kernel<BackwardPass<TensorTile<BFloat16Float>>>;
  cudaFuncAttributes attributes = {};
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) {
    gpu.capability = std::min(gpu.capability, attributes.ptxVersion);
  } else {
    cudaGetLastError();
  }
  gpu.largest_cluster = 0;
  for (int i = 0; i < kClusterSizes; ++i) {
    const int blocks = 2 << i;
    gpu.clusters[i] = gpu.capability >= 90
                          ? clusters_at_once(kernel, kBlockThreads, gpu.shared_memory, blocks)
                          : 0;
    if (gpu.clusters[i] > 0) gpu.largest_cluster = blocks;
  }
}

cudaError_t upload(const int64_t* from, int64_t count, int64_t* to, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(kUploadCount);
  config.stream = stream;
  for (int64_t done = 0; done < count; done += kUploadCount) {
    const int each = static_cast<int>(count - done < kUploadCount ? count - done : kUploadCount);
    Upload part = {};
    for (int i = 0; i < each; ++i) part.number[i] = from[done + i];
    const cudaError_t error = cudaLaunchKernelEx(&config, upload_kernel, part, each, to + done);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace fused_lstm
