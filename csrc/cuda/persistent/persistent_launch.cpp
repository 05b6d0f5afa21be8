// The passes by the persistent kernels: one GEMM with the input for all steps, then one launch.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/zeros.h>

#include "cuda/cublas.h"
#include "cuda/passes.h"
#include "cuda/persistent/launch_config.h"
#include "cuda/persistent/packed_fragments.h"
#include "cuda/persistent/params.h"
#include "cuda/stepwise/params.h"
#include "cuda/upload.h"

namespace fused_lstm {
namespace cuda {
namespace {

// A part of a launch: a direction of a layer, or a layer of a stack, which has one direction.
template <class Tensors>
struct Part {
  const Tensors& layer;
  int64_t d;

  const Weights& weights() const { return layer.weights[d]; }
};
template <class Tensors>
std::vector<Part<Tensors>> parts_of(at::ArrayRef<Tensors> layers) {
  std::vector<Part<Tensors>> parts;
  for (const Tensors& layer : layers) {
    for (size_t d = 0; d < layer.weights.size(); ++d) {
      parts.push_back({layer, static_cast<int64_t>(d)});
    }
  }
  return parts;
}

// What both passes hand to their kernel, and the memory that it needs meanwhile.
struct Common {
  at::Tensor offsets;   // [T + 1] int64, of a packed sequence
  at::Tensor exchange;  // of the grid's kernels

  template <class Types, class Tensors>
  Common(Persistent<Types>& p, const Sequence& sequence, const std::vector<Part<Tensors>>& parts,
         const at::Tensor& example, bool backward, Precision precision, const Plan& plan,
         cudaStream_t stream) {
    const Sizes& s = sequence.sizes;
    p.placement = plan.placement;
    p.layout = make_layout(plan.kernel, backward, plan.placement, precision);
    p.parts = static_cast<int>(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      p.weight_hh[i] = pointer<typename Types::Storage>(parts[i].weights().hh);
    }
    if (plan.kernel == Kernel::grid) {
      const int64_t block_groups = p.parts * plan.placement.slices;
      p.exchange_words = exchange_words(backward, plan.placement, precision);
      exchange =
          at::zeros({block_groups * 2 * p.exchange_words}, example.options().dtype(at::kInt));
      p.exchange = pointer<uint32_t>(exchange);
    }
    if (s.packed) {
      offsets = allocate({s.T + 1}, example.options().dtype(at::kLong));
      check(upload(sequence.offsets.data(), s.T + 1, pointer<int64_t>(offsets), stream), "upload",
            s, plan);
    }
  }

  static void check(cudaError_t error, const char* what, const Sizes& s, const Plan& plan) {
    const Placement& its = plan.placement;
    TORCH_CHECK(error == cudaSuccess, "fused_lstm: the ", what, " launch of the kernel ",
                kernel_name(plan.kernel), " (T ", s.T, ", B ", s.B, ", H ", s.H, ", directions ",
                s.directions, ", layers ", plan.layers, ": ", its.slices, " slices of ",
                its.sequences, " sequences, each on ", its.blocks, " blocks of ", its.units,
                " units) failed: ", cudaGetErrorString(error));
  }
};

// Fills tensors with what awaited.h takes as absent: neighbours in memory at once.
void fill_absent(const std::vector<at::Tensor>& tensors, const Sizes& s, const Plan& plan,
                 cudaStream_t stream) {
  for (size_t i = 0; i < tensors.size();) {
    char* const from = pointer<char>(tensors[i]);
    size_t bytes = 0;
    for (; i < tensors.size() && pointer<char>(tensors[i]) == from + bytes; ++i) {
      bytes += tensors[i].nbytes();
    }
    Common::check(cudaMemsetAsync(from, 0xff, bytes, stream), "fill", s, plan);
  }
}

// The fragments of a part that the plan's kernel loads, if the layer has them.
const uint4* fragments_for(const Plan& plan, const Part<ForwardTensors>& part) {
  const auto directions = static_cast<int64_t>(part.layer.weights.size());
  const std::vector<int64_t> shape = fragments_shape(plan.kernel, plan.placement, directions);
  for (const at::Tensor& fragments : part.layer.fragments) {
    const char* const its = pointer<char>(fragments, part.d);
    const bool aligned = reinterpret_cast<uintptr_t>(its) % sizeof(uint4) == 0;
    if (fragments.sizes() == shape && aligned) return reinterpret_cast<const uint4*>(its);
  }
  return nullptr;
}

// Calls body(Types) for the types that the persistent kernels take.
template <class Body>
void with_persistent_types(at::ScalarType storage, const Body& body) {
  with_types(storage, [&](auto types) {
    if constexpr (sizeof(typename decltype(types)::Operand) <= sizeof(float)) {
      body(types);
    } else {
      TORCH_INTERNAL_ASSERT(false, "the plan gives float64 to the stepwise kernels");
    }
  });
}

// Whether a kernel of the tiling has the GEMM with the first layer's input [N, D] made ahead. Of a
// stack it loads words of 8 bytes.
bool makes_input_ahead(const at::Tensor& input, const Tiling& tiling, Precision precision) {
  if (!tiling.stacked()) return tiling.input_tiles == 0;
  const int64_t row = input.size(-1) * element_bytes(precision);
  return row > int64_t{tiling.input_tiles} * kDepthBytes || row % sizeof(uint2) != 0 ||
         reinterpret_cast<uintptr_t>(input.const_data_ptr()) % sizeof(uint2) != 0;
}

}  // namespace

cudaError_t persistent_forward(const Sequence& sequence, at::ArrayRef<ForwardTensors> layers,
                               const Plan& plan) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const std::vector<Part<ForwardTensors>> parts = parts_of(layers);
  const ForwardTensors& first = layers.front();
  const at::ScalarType storage = first.output.scalar_type();
  const Precision precision =
      precision_of(static_cast<int>(at::elementSize(storage)), plan.tensor_cores);
  const bool input_ahead = makes_input_ahead(first.input, plan.placement.tiling, precision);
  at::Tensor preactivations;  // [directions, N, 4H]
  if (input_ahead) {
    // Where the types agree, the activations overwrite the preactivations.
    preactivations = first.gates.defined() && storage == accum_type(storage)
                         ? first.gates.view({s.directions, s.N, 4 * s.H})
                         : allocate({s.directions, s.N, 4 * s.H},
                                    first.output.options().dtype(accum_type(storage)));
    const at::Tensor input = first.input.view({s.N, s.D});
    const Cublas gemm(storage, plan.tensor_cores);
    for (int64_t d = 0; d < s.directions; ++d) {
      at::Tensor own = preactivations.select(0, d);
      gemm(own, input, first.weights[d].ih.t(), /*accumulate=*/false);
    }
  }
  std::vector<at::Tensor> awaited;
  for (size_t k = 0; k + 1 < layers.size(); ++k) awaited.push_back(layers[k].output);
  fill_absent(awaited, s, plan, stream);

  cudaError_t error = cudaSuccess;
  with_persistent_types(storage, [&](auto types) {
    using Types = decltype(types);
    using Storage = typename Types::Storage;
    PersistentForwardParams<Types> p = {};
    const Common common(p, sequence, parts, first.output, /*backward=*/false, precision, plan,
                        stream);
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto& [layer, d] = parts[i];
      p.layer[i] = forward_params<Types>(sequence, layer, d);
      p.layer[i].steps.offsets = pointer<int64_t>(common.offsets);
      const Weights& weights = parts[i].weights();
      if (input_ahead && &layer == &first) {
        p.preactivations[i] = pointer<typename Types::Accum>(preactivations, d);
      } else {
        p.input[i] = pointer<Storage>(layer.input);
        p.weight_ih[i] = pointer<Storage>(weights.ih);
        p.input_size[i] = static_cast<int>(weights.ih.size(1));
      }
      p.bias_ih[i] = pointer<Storage>(weights.bias_ih);
      p.bias_hh[i] = pointer<Storage>(weights.bias_hh);
      p.fragments[i] = fragments_for(plan, parts[i]);
    }
    error = launch_forward<Types>(plan.kernel, precision, p, stream);
  });
  if (!is_refusal(error)) Common::check(error, "forward", s, plan);
  return error;
}

cudaError_t persistent_backward(const Sequence& sequence, at::ArrayRef<BackwardTensors> layers,
                                const Plan& plan) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const std::vector<Part<BackwardTensors>> parts = parts_of(layers);
  const at::Tensor& gates = layers.front().gates;
  const Precision precision =
      precision_of(static_cast<int>(gates.element_size()), plan.tensor_cores);
  std::vector<at::Tensor> awaited;
  for (size_t k = 1; k < layers.size(); ++k) awaited.push_back(layers[k].grad_preactivations);
  fill_absent(awaited, s, plan, stream);
  cudaError_t error = cudaSuccess;
  with_persistent_types(gates.scalar_type(), [&](auto types) {
    using Types = decltype(types);
    using Storage = typename Types::Storage;
    PersistentBackwardParams<Types> p = {};
    const Common common(p, sequence, parts, gates, /*backward=*/true, precision, plan, stream);
    for (size_t i = 0; i < parts.size(); ++i) {
      p.layer[i] = backward_params<Types>(sequence, parts[i].layer, parts[i].d);
      p.layer[i].steps.offsets = pointer<int64_t>(common.offsets);
      if (layers.size() > 1 && i + 1 < parts.size()) {
        p.next_weight_ih[i] = pointer<Storage>(parts[i + 1].weights().ih);
        p.next_grad_preactivations[i] = pointer<Storage>(parts[i + 1].layer.grad_preactivations);
      }
    }
    error = launch_backward<Types>(plan.kernel, precision, p, stream);
    // Once the kernel has run, no other may: it has overwritten the gradients of the states.
    for (size_t i = 0; error == cudaSuccess && i < parts.size(); ++i) {
      if (!parts[i].layer.h_prev.defined()) continue;
      Common::check(StepwiseLaunch<Types>::h_prev(p.layer[i], stream), "hidden states'", s, plan);
    }
  });
  if (!is_refusal(error)) Common::check(error, "backward", s, plan);
  return error;
}

}  // namespace cuda
}  // namespace fused_lstm
