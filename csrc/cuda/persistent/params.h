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
  using Storage = typename Types::Storage;
  using Operand = typename Types::Operand;

  Kernel kernel;  // block, cluster or grid
  Placement placement;
  SharedLayout layout;  // of each block's shared memory
  int directions;
  const Storage* weight_hh[2];  // [4H, H]
  // Of the grid kernel, zero at the launch:
  Operand*
      exchange;  // [directions, slices, 2, exchange_size] what the blocks of a block group send
  int64_t exchange_size;
  unsigned* arrived;  // [directions, slices, kCounterStride] blocks that have sent, over all steps
};
constexpr int kCounterStride = 32;  // counters in cache lines of their own

// steps.offsets of the layers point to the device's memory.
template <class Types>
struct PersistentForwardParams : Persistent<Types> {
  ForwardParams<Types> layer[2];
  const typename Types::Accum* preactivations[2];  // [N, 4H] the input GEMM
  const typename Types::Storage* bias_ih[2];       // [4H], or null
  const typename Types::Storage* bias_hh[2];       // [4H], or null
};

template <class Types>
struct PersistentBackwardParams : Persistent<Types> {
  BackwardParams<Types> layer[2];
};

// tensor_cores: of a float32 layer, GEMMs in TF32; those of 16 bits always use them. It decides
// params.layout too.
template <class Types>
cudaError_t launch_forward(const PersistentForwardParams<Types>& params, bool tensor_cores,
                           cudaStream_t stream);
template <class Types>
cudaError_t launch_backward(const PersistentBackwardParams<Types>& params, bool tensor_cores,
                            cudaStream_t stream);

// What the driver says of these kernels on the current device, whose own facts gpu has: the
// compute capability that they were compiled for, if it is lower, and the clusters.
void ask_driver(Gpu& gpu);

// Host values into device memory, through the parameters of kernels: nothing waits, and a graph
// that captures it keeps its own copy.
cudaError_t upload(const int64_t* from, int64_t count, int64_t* to, cudaStream_t stream);

}  // namespace cuda
}  // namespace fused_lstm
