// The instructions of a GPU that C++ has no word for, one function each. The host's twins of them
// are tests/emulator's. Free of torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifndef __CUDACC__
#include <emulated_instructions.h>
#else

namespace fused_lstm {
namespace cuda {
namespace {

__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(128) char shared[];
  return shared;
}

// An older GPU never takes the kernels that need what follows: there it need only compile.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// sums [16, 8] += weights [16, 16] operand [16, 8], in the fragments of mma.m16n8k16.
__device__ __forceinline__ void multiply_half(float (&sums)[4], const uint32_t (&weights)[4],
                                              const uint32_t (&operand)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(operand[0]),
        "r"(operand[1]));
}
__device__ __forceinline__ void multiply_bfloat16(float (&sums)[4], const uint32_t (&weights)[4],
                                                  const uint32_t (&operand)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(operand[0]),
        "r"(operand[1]));
}
// sums [16, 8] += weights [16, 8] operand [8, 8], in the fragments of mma.m16n8k8.
__device__ __forceinline__ void multiply_tf32(float (&sums)[4], const uint32_t (&weights)[4],
                                              const uint32_t (&operand)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(operand[0]),
        "r"(operand[1]));
}
// The nearest number that multiply_tf32 reads unchanged.
__device__ __forceinline__ float to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
}

// 16 bytes from global to shared memory, past the L1 cache; there after wait_for_copies and a
// barrier.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

#else

__device__ __forceinline__ void multiply_half(float (&)[4], const uint32_t (&)[4],
                                              const uint32_t (&)[2]) {
  __trap();
}
__device__ __forceinline__ void multiply_bfloat16(float (&)[4], const uint32_t (&)[4],
                                                  const uint32_t (&)[2]) {
  __trap();
}
__device__ __forceinline__ void multiply_tf32(float (&)[4], const uint32_t (&)[4],
                                              const uint32_t (&)[2]) {
  __trap();
}
__device__ __forceinline__ float to_tf32(float x) { return x; }
__device__ __forceinline__ void copy_async(void*, const void*) { __trap(); }
__device__ __forceinline__ void wait_for_copies() { __trap(); }

#endif

// A counter in global memory through which the blocks of a grid wait for one another.
__device__ __forceinline__ void add_release(unsigned* counter, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned load_acquire(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// Clusters of blocks, from compute capability 9.0 on.
#if __CUDA_ARCH__ >= 900
// Where block `rank` of the cluster has what lies at `shared` in this block.
__device__ __forceinline__ char* map_shared(char* shared, unsigned rank) {
  uint64_t mapped;
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(shared), "r"(rank));
  return reinterpret_cast<char*>(mapped);
}
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
#else
__device__ __forceinline__ char* map_shared(char* shared, unsigned) { return shared; }
__device__ __forceinline__ void cluster_arrive() { __trap(); }
__device__ __forceinline__ void cluster_wait() { __trap(); }
#endif

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm

#endif
