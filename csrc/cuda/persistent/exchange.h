// How the blocks of a block group hand the operand of the next step to one another: through shared
// memory within a block, through one another's shared memory within a cluster, through global
// memory across the grid. Free of torch.
//
// The operand has versions; a block sends its part of version n + 1 while others may still read
// version n, so there are two buffers. No block sends version n + 1 before it has received all of
// version n, and a block that has sent version n is done with version n - 1: its buffer is free.
#pragma once

#include "cuda/ptx.h"
#include "plan/placement.h"

namespace fused_lstm {
namespace cuda {
namespace {

struct Exchange {
  Kernel kernel;
  int blocks;            // of the block group
  char* shared;          // one buffer (grid) or two
  int64_t shared_bytes;  // of a buffer
  int shared_stride;     // of a sequence, in bytes

  // Of the grid:
  char* global = nullptr;  // two buffers
  int64_t global_bytes = 0;
  int global_stride = 0;
  unsigned* arrived = nullptr;  // blocks that have sent, over all versions

  unsigned sent = 0;  // versions

  // Zeroes the buffers: elements that no block sends stay zero.
  __device__ void start() {
    for (int64_t i = threadIdx.x; i < operand_buffers(kernel) * shared_bytes / 4;
         i += kBlockThreads) {
      reinterpret_cast<uint32_t*>(shared)[i] = 0;
    }
    if (kernel == Kernel::cluster) {  // from here on others may write to them
      cluster_arrive();
      cluster_wait();
    } else {
      __syncthreads();
    }
  }

  // Elements `first`, .. of sequence b of the version to come, to the whole block group.
  template <class Elements>
  __device__ void send(int b, int first, const Elements& elements) const {
    const int64_t at = first * static_cast<int64_t>(sizeof(elements.element[0]));
    if (kernel == Kernel::grid) {
      char* const buffer = global + (sent & 1) * global_bytes;
      *reinterpret_cast<Elements*>(buffer + b * global_stride + at) = elements;
      return;
    }
    char* const own = shared + (sent & 1) * shared_bytes + b * shared_stride + at;
    if (kernel == Kernel::block) {
      *reinterpret_cast<Elements*>(own) = elements;
      return;
    }
    for (int rank = 0; rank < blocks; ++rank) {
      *reinterpret_cast<Elements*>(map_shared(own, rank)) = elements;
    }
  }

  // All threads, after they have sent.
  __device__ void finish_sending() {
    ++sent;
    if (kernel == Kernel::cluster) {
      cluster_arrive();
    } else if (kernel == Kernel::grid) {
      __syncthreads();
      if (threadIdx.x == 0) add_release(arrived, 1);
    }
  }

  // The newest version of sequences first .. first + count, complete, in shared memory. `first` is
  // zero but for the grid, which has room for some at a time.
  __device__ const char* receive(int first, int count) const {
    if (kernel == Kernel::block) {
      __syncthreads();
    } else if (kernel == Kernel::cluster) {
      cluster_wait();
    } else {
      fetch(first, count);
      return shared;
    }
    return shared + ((sent - 1) & 1) * shared_bytes;
  }

 private:
  __device__ void fetch(int first, int count) const {
    if (first == 0) {
      if (threadIdx.x == 0) {
        while (load_acquire(arrived) < sent * blocks) {
        }
      }
      __syncthreads();
    }
    const char* const buffer = global + ((sent - 1) & 1) * global_bytes + first * global_stride;
    const int chunks = global_stride / 16;  // of a sequence
    for (int i = threadIdx.x; i < count * chunks; i += kBlockThreads) {
      const int b = i / chunks, chunk = i % chunks;
      copy_async(shared + b * shared_stride + 16 * chunk, buffer + b * global_stride + 16 * chunk);
    }
    wait_for_copies();
    __syncthreads();
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
