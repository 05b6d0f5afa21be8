// The CUDA kernels that take all steps of a layer in one launch, the recurrent weights in registers
// and shared memory. Free of torch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/sequence.h"
#include "cuda/types.h"
#include "plan/plan.h"

namespace fused_lstm {
namespace cuda {

// What both passes need besides the layer's own parameters. Every array has one part for each
// direction.
template <class Types>
struct Persistent {
  Placement placement;
  SharedLayout layout;  // of each block's shared memory
  int directions;
  const typename Types::Storage* weight_hh[2];  // [4H, H]
  // Of the grid's kernels, zero at the launch:
  uint32_t* exchange;  // [directions, slices, 2, exchange_words] what a block group's blocks send
  int64_t exchange_words;  // of one buffer
};

// steps.offsets of the layers point to the device's memory. The layers' h_0, c_0 may be null: zero.
template <class Types>
struct PersistentForwardParams : Persistent<Types> {
  ForwardParams<Types> layer[2];
  const typename Types::Storage* bias_ih[2];  // [4H], or null
  const typename Types::Storage* bias_hh[2];  // [4H], or null
  const uint4* fragments[2];                  // of the weights (packed_fragments.h), or null
  // The GEMM with the input: made ahead,
  const typename Types::Accum* preactivations[2];  // [N, 4H]
  // or, with input_tiles, in the kernel.
  const typename Types::Storage* input;         // [N, D]
  const typename Types::Storage* weight_ih[2];  // [4H, D]
  int input_size;                               // D
};

template <class Types>
struct PersistentBackwardParams : Persistent<Types> {
  BackwardParams<Types> layer[2];
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
