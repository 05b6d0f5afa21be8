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

#endif

// e^(x ln 2) and 1 / x: one instruction each, within 2 units in the last place and 1; a subnormal
// operand or result is zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// x of the thread itself, which after the shuffle stays in a register: the compiler would compute
// it again, or read it from a kernel's parameters again, wherever it is used. For all lanes
// together.
__device__ __forceinline__ int in_register(int x) {
  return __shfl_sync(0xffffffff, x, static_cast<int>(threadIdx.x % 32));
}
// A pointer to global memory.
template <class T>
__device__ __forceinline__ T* in_register(T* pointer) {
  const uint64_t address = __shfl_sync(0xffffffff, reinterpret_cast<uint64_t>(pointer),
                                       static_cast<int>(threadIdx.x % 32));
  return const_cast<T*>(static_cast<const T*>(__cvta_global_to_generic(address)));
}

// base + row * row_bytes in global memory, in one instruction.
template <class T>
__device__ __forceinline__ T* row_of(T* base, int row, int row_bytes) {
  uint64_t address;
  asm("mad.wide.s32 %0, %1, %2, %3;"
      : "=l"(address)
      : "r"(row), "r"(row_bytes), "l"(reinterpret_cast<uint64_t>(base)));
  return const_cast<T*>(static_cast<const T*>(__cvta_global_to_generic(address)));
}

__device__ __forceinline__ bool any_of_warp(bool condition) {
  return __any_sync(0xffffffff, condition);
}

// *from, or `otherwise` where it does not exist: by a predicate rather than a branch, so that the
// loads after it are issued before its result has come.
template <class T>
__device__ __forceinline__ T load_if(bool exists, const T* from, T otherwise = T{}) {
  static_assert(sizeof(T) == 2, "a 16-bit type, or one of those below");
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists ld.global.u16 %0, [%1]; }"
      : "+h"(otherwise.bits)
      : "l"(from), "r"(static_cast<unsigned>(exists)));
  return otherwise;
}
__device__ __forceinline__ uint32_t load_if(bool exists, const uint32_t* from,
                                            uint32_t otherwise = 0) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists ld.global.u32 %0, [%1]; }"
      : "+r"(otherwise)
      : "l"(from), "r"(static_cast<unsigned>(exists)));
  return otherwise;
}
__device__ __forceinline__ float load_if(bool exists, const float* from, float otherwise = 0) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists ld.global.f32 %0, [%1]; }"
      : "+f"(otherwise)
      : "l"(from), "r"(static_cast<unsigned>(exists)));
  return otherwise;
}
// 1, 2 or 4 words in one access.
template <int count, class T>
__device__ __forceinline__ void load_words_if(bool exists, const T* from, uint32_t* words) {
  static_assert(count == 1 || count == 2 || count == 4, "an access of 4, 8 or 16 bytes");
#pragma unroll
  for (int i = 0; i < count; ++i) words[i] = 0;
  if constexpr (count == 1) {
    asm volatile(
        "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
        "@exists ld.global.u32 %0, [%1]; }"
        : "+r"(words[0])
        : "l"(from), "r"(static_cast<unsigned>(exists)));
  } else if constexpr (count == 2) {
    asm volatile(
        "{ .reg .pred exists; setp.ne.u32 exists, %3, 0;\n"
        "@exists ld.global.v2.u32 {%0, %1}, [%2]; }"
        : "+r"(words[0]), "+r"(words[1])
        : "l"(from), "r"(static_cast<unsigned>(exists)));
  } else {
    asm volatile(
        "{ .reg .pred exists; setp.ne.u32 exists, %5, 0;\n"
        "@exists ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
        : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
        : "l"(from), "r"(static_cast<unsigned>(exists)));
  }
}
// A byte, widened.
__device__ __forceinline__ uint32_t load_if(bool exists, const uint8_t* from) {
  uint32_t byte = 0;
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists ld.global.u8 %0, [%1]; }"
      : "+r"(byte)
      : "l"(from), "r"(static_cast<unsigned>(exists)));
  return byte;
}

// *to = x where it exists, likewise.
template <class T>
__device__ __forceinline__ void store_if(bool exists, T* to, T x) {
  static_assert(sizeof(T) == 2, "a 16-bit type, or float");
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists st.global.u16 [%0], %1; }" ::"l"(to),
      "h"(x.bits), "r"(static_cast<unsigned>(exists))
      : "memory");
}
__device__ __forceinline__ void store_if(bool exists, float* to, float x) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists st.global.f32 [%0], %1; }" ::"l"(to),
      "f"(x), "r"(static_cast<unsigned>(exists))
      : "memory");
}

// Words in global memory that other blocks write or read meanwhile. Each 32-bit word is read and
// written whole; accesses to different words are in no order.
__device__ __forceinline__ uint4 load_relaxed(const uint4* from) {
  uint4 words;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from)
               : "memory");
  return words;
}
// *from where it exists, as load_if.
__device__ __forceinline__ uint32_t load_relaxed_if(bool exists, const uint32_t* from,
                                                    uint32_t otherwise) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists ld.relaxed.gpu.global.u32 %0, [%1]; }"
      : "+r"(otherwise)
      : "l"(from), "r"(static_cast<unsigned>(exists))
      : "memory");
  return otherwise;
}
__device__ __forceinline__ uint2 load_relaxed_if(bool exists, const uint2* from, uint2 otherwise) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %3, 0;\n"
      "@exists ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2]; }"
      : "+r"(otherwise.x), "+r"(otherwise.y)
      : "l"(from), "r"(static_cast<unsigned>(exists))
      : "memory");
  return otherwise;
}
__device__ __forceinline__ float load_relaxed_if(bool exists, const float* from, float otherwise) {
  const uint32_t bits =
      load_relaxed_if(exists, reinterpret_cast<const uint32_t*>(from), __float_as_uint(otherwise));
  return __uint_as_float(bits);
}
template <class T>
__device__ __forceinline__ T load_relaxed_if(bool exists, const T* from, T otherwise) {
  static_assert(sizeof(T) == 2, "a 16-bit type, or one of those above");
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists ld.relaxed.gpu.global.u16 %0, [%1]; }"
      : "+h"(otherwise.bits)
      : "l"(from), "r"(static_cast<unsigned>(exists))
      : "memory");
  return otherwise;
}
__device__ __forceinline__ void store_relaxed(uint32_t* to, uint32_t word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
template <class T>
__device__ __forceinline__ void store_relaxed_if(bool exists, T* to, T x) {
  static_assert(sizeof(T) == 2, "a 16-bit type, or one of those below");
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists st.relaxed.gpu.global.u16 [%0], %1; }" ::"l"(to),
      "h"(x.bits), "r"(static_cast<unsigned>(exists))
      : "memory");
}
__device__ __forceinline__ void store_relaxed_if(bool exists, float* to, float x) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists st.relaxed.gpu.global.f32 [%0], %1; }" ::"l"(to),
      "f"(x), "r"(static_cast<unsigned>(exists))
      : "memory");
}
__device__ __forceinline__ void store_relaxed_if(bool exists, uint32_t* to, uint32_t word) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %2, 0;\n"
      "@exists st.relaxed.gpu.global.u32 [%0], %1; }" ::"l"(to),
      "r"(word), "r"(static_cast<unsigned>(exists))
      : "memory");
}
// Four words, each whole by itself, where they exist.
__device__ __forceinline__ void store_relaxed_if(bool exists, uint4* to, uint4 words) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %5, 0;\n"
      "@exists st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4}; }" ::"l"(to),
      "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w), "r"(static_cast<unsigned>(exists))
      : "memory");
}

// Clusters of blocks, from compute capability 9.0 on. An address in some block's shared memory, in
// bytes.
using ClusterAddress = uint32_t;

#if __CUDA_ARCH__ >= 900
// Where block `rank` of the cluster has what lies at `shared` in this block.
__device__ __forceinline__ ClusterAddress cluster_address(const void* shared, unsigned rank) {
  const uint32_t own = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  ClusterAddress mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(own), "r"(rank));
  return mapped;
}
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A barrier in shared memory. A phase ends when all `arrivals` have come and as many bytes have
// been stored by store_async as barrier_expect announced; then the next one begins.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned arrivals) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
// Makes the initialisation visible to the cluster's barrier_wait and store_async, with the
// cluster's barrier after it.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives, and announces `bytes` of the current phase.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, unsigned bytes) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
               : "memory");
}
// Until the phase of that parity (0: the first, 1: the second, ...) has ended. What store_async
// stored for it is then visible.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  uint32_t ended;
  do {
    asm volatile(
        "{ .reg .pred ended;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended; }"
        : "=r"(ended)
        : "r"(at), "r"(parity)
        : "memory");
  } while (!ended);
}
// Stores in a block's shared memory, some time later, and then counts the bytes at `barrier` of the
// same block.
__device__ __forceinline__ void store_async(ClusterAddress to, uint32_t word,
                                            ClusterAddress barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
      "r"(word), "r"(barrier)
      : "memory");
}
// Those of two and four words: where it `exists`.
__device__ __forceinline__ void store_async(ClusterAddress to, uint2 words, ClusterAddress barrier,
                                            bool exists = true) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %4, 0;\n"
      "@exists st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3]; "
      "}" ::"r"(to),
      "r"(words.x), "r"(words.y), "r"(barrier), "r"(static_cast<unsigned>(exists))
      : "memory");
}
__device__ __forceinline__ void store_async(ClusterAddress to, uint4 words, ClusterAddress barrier,
                                            bool exists = true) {
  asm volatile(
      "{ .reg .pred exists; setp.ne.u32 exists, %6, 0;\n"
      "@exists st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], "
      "{%1, %2, %3, %4}, [%5]; }" ::"r"(to),
      "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w), "r"(barrier),
      "r"(static_cast<unsigned>(exists))
      : "memory");
}
#else
__device__ __forceinline__ ClusterAddress cluster_address(const void*, unsigned) { return 0; }
__device__ __forceinline__ void cluster_arrive() { __trap(); }
__device__ __forceinline__ void cluster_wait() { __trap(); }
__device__ __forceinline__ void barrier_init(uint64_t*, unsigned) { __trap(); }
__device__ __forceinline__ void barrier_init_fence() { __trap(); }
__device__ __forceinline__ void barrier_expect(uint64_t*, unsigned) { __trap(); }
__device__ __forceinline__ void barrier_wait(uint64_t*, unsigned) { __trap(); }
__device__ __forceinline__ void store_async(ClusterAddress, uint32_t, ClusterAddress) { __trap(); }
__device__ __forceinline__ void store_async(ClusterAddress, uint2, ClusterAddress, bool = true) {
  __trap();
}
__device__ __forceinline__ void store_async(ClusterAddress, uint4, ClusterAddress, bool = true) {
  __trap();
}
#endif

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm

#endif
