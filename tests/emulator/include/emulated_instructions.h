// The host's twins of csrc/cuda/ptx.h.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cmath>

#include "core/numeric.h"

namespace emulator {

// Among whom an operation orders memory.
enum class Scope { cta, cluster, gpu };

char* block_memory();
char* map_shared(char* shared, unsigned rank);
void cluster_arrive();
void cluster_wait();
// `count` words of `bytes` each, 4 or 2.
void load_relaxed(const void* from, void* to, int count, int bytes = 4);
void store_relaxed(void* to, const void* from, int count, int bytes = 4);
uintptr_t cluster_address(const void* shared, unsigned rank);
void store_async(uintptr_t to, const void* value, size_t bytes, uintptr_t barrier);
void barrier_init(uint64_t* barrier, unsigned arrivals);
void barrier_expect(uint64_t* barrier, unsigned bytes);
void barrier_init_fence();
void barrier_wait(uint64_t* barrier, unsigned parity, Scope scope = Scope::cluster);
void add_release(unsigned* counter, unsigned value, Scope scope = Scope::gpu);
unsigned load_acquire(const unsigned* counter, Scope scope = Scope::gpu);

// What a lane brings to mma, and its sums.
struct Multiplied {
  float* sums;
  const uint32_t* weights;
  const uint32_t* operand;
};

// mma.m16n8, of numbers of which a 32-bit word holds `each`: the fragments as the PTX manual has
// them. value(word, index) is a number.
template <int each, class Value>
void multiply_fragments(void* const (&lanes)[32], const Value& value) {
  constexpr int depth = 8 * each;
  float weights[16][depth], operand[depth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Multiplied*>(lanes[lane]);
    const int group = lane / 4, in_group = lane % 4;
    for (int w = 0; w < 4; ++w) {
      for (int e = 0; e < each; ++e) {
        const int k = (in_group + (w >> 1) * 4) * each + e;
        weights[group + (w & 1) * 8][k] = value(mine.weights[w], e);
        if (w < 2) operand[(in_group + w * 4) * each + e][group] = value(mine.operand[w], e);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Multiplied*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >> 1) * 8, column = 2 * (lane % 4) + (i & 1);
      float sum = mine.sums[i];
      for (int k = 0; k < depth; ++k) sum += weights[row][k] * operand[k][column];
      mine.sums[i] = sum;
    }
  }
}

}  // namespace emulator

namespace fused_lstm {
namespace cuda {
namespace {

inline char* dynamic_shared() { return emulator::block_memory(); }

inline void multiply_half(float (&sums)[4], const uint32_t (&weights)[4],
                          const uint32_t (&operand)[2]) {
  emulator::Multiplied mine = {sums, weights, operand};
  emulator::wait_for_warp("mma.f16", &mine, [](void* const(&lanes)[32]) {
    emulator::multiply_fragments<2>(lanes, [](uint32_t word, int index) {
      const Half number = {static_cast<uint16_t>(word >> (16 * index))};
      return load<float>(&number, 1);
    });
  });
}

inline void multiply_bfloat16(float (&sums)[4], const uint32_t (&weights)[4],
                              const uint32_t (&operand)[2]) {
  emulator::Multiplied mine = {sums, weights, operand};
  emulator::wait_for_warp("mma.bf16", &mine, [](void* const(&lanes)[32]) {
    emulator::multiply_fragments<2>(lanes, [](uint32_t word, int index) {
      const BFloat16 number = {static_cast<uint16_t>(word >> (16 * index))};
      return load<float>(&number, 1);
    });
  });
}

// The instruction ignores the 13 last bits; what is not rounded to the others shows here.
inline void multiply_tf32(float (&sums)[4], const uint32_t (&weights)[4],
                          const uint32_t (&operand)[2]) {
  emulator::Multiplied mine = {sums, weights, operand};
  emulator::wait_for_warp("mma.tf32", &mine, [](void* const(&lanes)[32]) {
    emulator::multiply_fragments<1>(
        lanes, [](uint32_t word, int) { return bits_as<float>(word & ~0x1fffu); });
  });
}

inline float to_tf32(float x) {
  uint32_t bits = bits_as<uint32_t>(x);
  if (x - x != 0) return x;  // infinite or NaN
  bits += 0x1000;            // to nearest, ties away from zero
  return bits_as<float>(bits & ~0x1fffu);
}

inline uint4 load_relaxed(const uint4* from) {
  uint4 value;
  emulator::load_relaxed(from, &value, 4);
  return value;
}
inline uint32_t load_relaxed_if(bool exists, const uint32_t* from, uint32_t otherwise) {
  if (exists) emulator::load_relaxed(from, &otherwise, 1);
  return otherwise;
}
inline uint2 load_relaxed_if(bool exists, const uint2* from, uint2 otherwise) {
  if (exists) emulator::load_relaxed(from, &otherwise, 2);
  return otherwise;
}
template <class T>
T load_relaxed_if(bool exists, const T* from, T otherwise) {
  if (exists) emulator::load_relaxed(from, &otherwise, 1, sizeof(T));
  return otherwise;
}
inline void store_relaxed(uint32_t* to, uint32_t value) { emulator::store_relaxed(to, &value, 1); }
template <class T>
void store_relaxed_if(bool exists, T* to, T value) {
  if (exists) emulator::store_relaxed(to, &value, 1, sizeof(T));
}
inline void store_relaxed_if(bool exists, uint4* to, uint4 value) {
  if (exists) emulator::store_relaxed(to, &value, 4);
}

inline void cluster_arrive() { emulator::cluster_arrive(); }
inline void cluster_wait() { emulator::cluster_wait(); }

using ClusterAddress = uintptr_t;
inline ClusterAddress cluster_address(const void* shared, unsigned rank) {
  return emulator::cluster_address(shared, rank);
}
inline void store_async(ClusterAddress to, uint32_t value, ClusterAddress barrier) {
  emulator::store_async(to, &value, sizeof(value), barrier);
}
inline void store_async(ClusterAddress to, uint2 value, ClusterAddress barrier,
                        bool exists = true) {
  if (exists) emulator::store_async(to, &value, sizeof(value), barrier);
}
inline void store_async(ClusterAddress to, uint4 value, ClusterAddress barrier,
                        bool exists = true) {
  if (exists) emulator::store_async(to, &value, sizeof(value), barrier);
}
inline void barrier_init(uint64_t* barrier, unsigned arrivals) {
  emulator::barrier_init(barrier, arrivals);
}
inline void barrier_init_fence() { emulator::barrier_init_fence(); }
inline void barrier_expect(uint64_t* barrier, unsigned bytes) {
  emulator::barrier_expect(barrier, bytes);
}
inline void barrier_wait(uint64_t* barrier, unsigned parity) {
  emulator::barrier_wait(barrier, parity);
}

template <int count, class T>
void load_words_if(bool exists, const T* from, uint32_t* words) {
  for (int i = 0; i < count; ++i) {
    words[i] = exists ? reinterpret_cast<const uint32_t*>(from)[i] : 0;
  }
}
template <class T>
T load_if(bool exists, const T* from, T otherwise = T{}) {
  return exists ? *from : otherwise;
}
inline uint32_t load_if(bool exists, const uint8_t* from) { return exists ? *from : 0; }
template <class T>
void store_if(bool exists, T* to, T x) {
  if (exists) *to = x;
}

template <class T>
T* row_of(T* base, int row, int row_bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<intptr_t>(base) +
                              static_cast<intptr_t>(row) * row_bytes);
}
inline int in_register(int x) { return x; }
template <class T>
T* in_register(T* pointer) {
  return pointer;
}

inline bool any_of_warp(bool mine) {
  bool both[2] = {mine, false};
  emulator::wait_for_warp("vote.any", both, [](void* const(&lanes)[32]) {
    bool any = false;
    for (void* const lane : lanes) any = any || *static_cast<bool*>(lane);
    for (void* const lane : lanes) static_cast<bool*>(lane)[1] = any;
  });
  return both[1];
}

// The approximations of the GPU flush subnormal numbers, given or returned, to zero.
inline float flush_subnormal(float x) {
  return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x;
}
inline float exp2_approx(float x) { return flush_subnormal(std::exp2(flush_subnormal(x))); }
inline float reciprocal_approx(float x) { return flush_subnormal(1 / flush_subnormal(x)); }

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
