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

// What both passes hand to their kernel, and the memory that it needs meanwhile.
struct Common {
  at::Tensor offsets;   // [T + 1] int64, of a packed sequence
  at::Tensor exchange;  // of the grid's kernels

  template <class Types, class Layer>
  Common(Persistent<Types>& p, const Sequence& sequence, const Layer& layer,
         const at::Tensor& example, bool backward, Precision precision, const Plan& plan,
         cudaStream_t stream) {
    const Sizes& s = sequence.sizes;
    p.placement = plan.placement;
    p.layout = make_layout(plan.kernel, backward, plan.placement, precision);
    p.directions = static_cast<int>(s.directions);
    for (int64_t d = 0; d < s.directions; ++d) {
      p.weight_hh[d] = pointer<typename Types::Storage>(layer.weights[d].hh);
    }
    if (plan.kernel == Kernel::grid) {
      const int64_t block_groups = s.directions * plan.placement.slices;
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
                s.directions, ": ", its.slices, " slices of ", its.sequences,
                " sequences, each on ", its.blocks, " blocks of ", its.units,
                " units) failed: ", cudaGetErrorString(error));
  }
};

// The fragments of direction d that the plan's kernel loads, if the layer has them.
const uint4* fragments_for(const Plan& plan, const ForwardTensors& layer, int64_t d) {
  const auto directions = static_cast<int64_t>(layer.weights.size());
  const std::vector<int64_t> shape = fragments_shape(plan.kernel, plan.placement, directions);
  for (const at::Tensor& fragments : layer.fragments) {
    const char* const its = pointer<char>(fragments, d);
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

}  // namespace

cudaError_t persistent_forward(const Sequence& sequence, const ForwardTensors& layer,
                               const Plan& plan) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const at::ScalarType storage = layer.output.scalar_type();
  const Precision precision =
      precision_of(static_cast<int>(at::elementSize(storage)), plan.tensor_cores);
  const bool input_ahead = plan.placement.tiling.input_tiles == 0;
  at::Tensor preactivations;  // [directions, N, 4H]
  if (input_ahead) {
    // Where the types agree, the activations overwrite the preactivations.
    preactivations = layer.gates.defined() && storage == accum_type(storage)
                         ? layer.gates.view({s.directions, s.N, 4 * s.H})
                         : allocate({s.directions, s.N, 4 * s.H},
                                    layer.output.options().dtype(accum_type(storage)));
    const at::Tensor input = layer.input.view({s.N, s.D});
    const Cublas gemm(storage, plan.tensor_cores);
    for (int64_t d = 0; d < s.directions; ++d) {
      at::Tensor own = preactivations.select(0, d);
      gemm(own, input, layer.weights[d].ih.t(), /*accumulate=*/false);
    }
  }

  cudaError_t error = cudaSuccess;
  with_persistent_types(storage, [&](auto types) {
    using Types = decltype(types);
    PersistentForwardParams<Types> p = {};
    const Common common(p, sequence, layer, layer.output, /*backward=*/false, precision, plan,
                        stream);
    p.input = pointer<typename Types::Storage>(layer.input);
    p.input_size = static_cast<int>(s.D);
    for (int64_t d = 0; d < s.directions; ++d) {
      p.layer[d] = forward_params<Types>(sequence, layer, d);
      p.layer[d].steps.offsets = pointer<int64_t>(common.offsets);
      if (input_ahead) p.preactivations[d] = pointer<typename Types::Accum>(preactivations, d);
      p.weight_ih[d] = pointer<typename Types::Storage>(layer.weights[d].ih);
      p.bias_ih[d] = pointer<typename Types::Storage>(layer.weights[d].bias_ih);
      p.bias_hh[d] = pointer<typename Types::Storage>(layer.weights[d].bias_hh);
      p.fragments[d] = fragments_for(plan, layer, d);
    }
    error = launch_forward<Types>(plan.kernel, precision, p, stream);
  });
  if (!is_refusal(error)) Common::check(error, "forward", s, plan);
  return error;
}

cudaError_t persistent_backward(const Sequence& sequence, const BackwardTensors& layer,
                                const Plan& plan) {
  const Sizes& s = sequence.sizes;
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const Precision precision =
      precision_of(static_cast<int>(layer.gates.element_size()), plan.tensor_cores);
  cudaError_t error = cudaSuccess;
  with_persistent_types(layer.gates.scalar_type(), [&](auto types) {
    using Types = decltype(types);
    PersistentBackwardParams<Types> p = {};
    const Common common(p, sequence, layer, layer.gates, /*backward=*/true, precision, plan,
                        stream);
    for (int64_t d = 0; d < s.directions; ++d) {
      p.layer[d] = backward_params<Types>(sequence, layer, d);
      p.layer[d].steps.offsets = pointer<int64_t>(common.offsets);
    }
    error = launch_backward<Types>(plan.kernel, precision, p, stream);
    // Once the kernel has run, no other may: it has overwritten the gradients of the states.
    for (int64_t d = 0; error == cudaSuccess && d < s.directions; ++d) {
      if (!layer.h_prev.defined()) break;
      Common::check(StepwiseLaunch<Types>::h_prev(p.layer[d], stream), "hidden states'", s, plan);
    }
  });
  if (!is_refusal(error)) Common::check(error, "backward", s, plan);
  return error;
}

}  // namespace cuda
}  // namespace fused_lstm
