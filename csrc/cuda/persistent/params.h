// The CUDA kernels that take all steps of a layer in one launch, the recurrent weights in registers
// and shared memory. Free of torch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/sequence.h"
#include "cuda/types.h"
#include "plan/plan.h"

namespace fused_lstm {
namespace cuda {

// What both passes need besides the layers' own parameters. Every array has one part for each
// direction of a layer, or for each layer of a stack, from the first one on.
template <class Types>
struct Persistent {
  Placement placement;
  SharedLayout layout;  // of each block's shared memory
  int parts;
  const typename Types::Storage* weight_hh[kMaxParts];  // [4H, H]
  // Of the grid's kernels, zero at the launch:
  uint32_t* exchange;      // [parts, slices, 2, exchange_words] what a block group's blocks send
  int64_t exchange_words;  // of one buffer
};

// steps.offsets of the layers point to the device's memory. The layers' h_0, c_0 may be null: zero.
template <class Types>
struct PersistentForwardParams : Persistent<Types> {
  ForwardParams<Types> layer[kMaxParts];
  const typename Types::Storage* bias_ih[kMaxParts];  // [4H], or null
  const typename Types::Storage* bias_hh[kMaxParts];  // [4H], or null
  const uint4* fragments[kMaxParts];  // of the weights (packed_fragments.h), or null
  // The GEMM with the input: made ahead,
  const typename Types::Accum* preactivations[kMaxParts];  // [N, 4H], or null
  // or, with input_tiles, in the kernel: of a stack's layer, awaited from the one before it.
  const typename Types::Storage* input[kMaxParts];      // [N, D]
  const typename Types::Storage* weight_ih[kMaxParts];  // [4H, D]
  int input_size[kMaxParts];                            // D, or 0: made ahead
};

template <class Types>
struct PersistentBackwardParams : Persistent<Types> {
  BackwardParams<Types> layer[kMaxParts];
  // Of a stack's layers but the last one, where the layer after it has:
  const typename Types::Storage* next_weight_ih[kMaxParts];            // [4H, H]
  const typename Types::Storage* next_grad_preactivations[kMaxParts];  // [N, 4H], awaited
};

// Launches the kernel of params.placement.tiling. A refusal leaves no error behind in the runtime.
template <class Types>
cudaError_t launch_forward(Kernel kernel, Precision precision,
                           const PersistentForwardParams<Types>& params, cudaStream_t stream);
template <class Types>
cudaError_t launch_backward(Kernel kernel, Precision precision,
                            const PersistentBackwardParams<Types>& params, cudaStream_t stream);

// What the driver says of these kernels on the current device, whose own facts gpu has: the
// compute capability that they were compiled for, if it is lower, and the clusters.
void ask_driver(Gpu& gpu);

}  // namespace cuda
}  // namespace fused_lstm
