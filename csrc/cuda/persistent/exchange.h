// How the blocks of the grid hand the operand of a step to one another, or its sums
// (scatter_backward.h, batched_backward.h): through words in global memory (the L2 cache) that say
// themselves whether they have come. Free of torch.
//
// Version v = 1, 2, .. of the operand enters the step of iteration v and lies in buffer v % 2. One
// bit of each 32-bit word, which the data never needs, is the phase of its version,
// (v - 1) / 2 % 2 == 0: of the two versions that a word can hold while version v is awaited, v and
// v - 2, only v has its phase. At the launch all words are zero, the phase of no first version.
//
//   writer                                      reader
//   has all words of version v                  reads its words of version v + 1 again
//   stores its words of version v + 1           until all have the phase of v + 1
//
// Accesses are relaxed: each word is whole, words come in any order, and no fence is needed. A word
// of version v + 1 replaces v - 1: every block has read all of v - 1, for it has sent its words of
// v after a barrier of its threads that follows their reading. A reader cannot go back to an older
// version of a word, as one thread's reads of one address are coherent.
#pragma once

#include "cuda/persistent/mma.h"

namespace fused_lstm {
namespace cuda {
namespace {

// The phase of version v, in bit `bit`.
__device__ __forceinline__ uint32_t phase_of(int version, uint32_t bit) {
  return (version - 1) / 2 % 2 == 0 ? bit : 0;
}

// A word of a float32 element: its lowest bit is the phase. TF32 does not read that bit.
constexpr uint32_t kFloatPhase = 1;
__device__ __forceinline__ uint32_t float_word(uint32_t bits, uint32_t phase) {
  return (bits & ~kFloatPhase) | phase;
}

// A word of two 16-bit elements h, |h| <= 1, the second in the upper half: the highest bit of the
// upper one's exponent, set from 2 on, is the phase. If that element is NaN, the lower one becomes
// it: a sum over the depth has both, and is NaN in either case.
constexpr uint32_t kPairPhase = 0x40000000;
__device__ __forceinline__ uint32_t pair_word(uint32_t bits, uint32_t phase) {
  constexpr uint32_t nan = 0x7fff;  // of either format
  return (bits & kPairPhase ? nan : bits) | phase;
}

// The first `awaited` words of a version, of `all`, float32 numbers that are `stride` words apart.
// Words that are not awaited are zero. Those of a group are loaded again until as many have the
// phase's bit as should.
template <int all, int stride>
class SentSum {
 public:
  __device__ __forceinline__ SentSum(const uint32_t* from, int awaited, uint32_t phase)
      : from_(from), phase_(phase) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int of_group = awaited - g * kGroup;
      expected_[g] = phase == 0 || of_group < 0 ? 0 : of_group < kGroup ? of_group : kGroup;
      whole_[g] = false;
    }
  }

  // Those of groups that are not whole.
  __device__ __forceinline__ void load(uint32_t (&words)[all]) const {
#pragma unroll
    for (int i = 0; i < all; ++i) {
      words[i] = load_relaxed_if(!whole_[i / kGroup], from_ + i * stride, words[i]);
    }
  }

  // Whether any lane's words have not all come.
  __device__ __forceinline__ bool any_missing(const uint32_t (&words)[all]) {
    bool all_whole = true;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      int set = 0;
#pragma unroll
      for (int i = g * kGroup; i < all && i < (g + 1) * kGroup; ++i) {
        set += static_cast<int>(words[i] & kFloatPhase);
      }
      whole_[g] = expected_[g] + (phase_ ? -set : set) <= 0;
      all_whole = all_whole && whole_[g];
    }
    return any_of_warp(!all_whole);
  }

  // In their order, those of even and of odd places by themselves.
  static __device__ __forceinline__ float sum(const uint32_t (&words)[all]) {
    float sums[2] = {};
#pragma unroll
    for (int i = 0; i < all; ++i) sums[i % 2] += __uint_as_float(words[i] & ~kFloatPhase);
    return sums[0] + sums[1];
  }

 private:
  static constexpr int kGroup = 8, kGroups = (all + kGroup - 1) / kGroup;
  const uint32_t* const from_;
  const uint32_t phase_;
  int expected_[kGroups];
  bool whole_[kGroups];
};

template <int all, int stride>
__device__ __forceinline__ float receive_sum(const uint32_t* from, int awaited, uint32_t phase) {
  SentSum<all, stride> sent(from, awaited, phase);
  uint32_t words[all] = {};
  do {
    sent.load(words);
  } while (sent.any_missing(words));
  return sent.sum(words);
}

// The same in two parts: load_sum loads the words, finish_sum again what had not come by then.
template <int all, int stride>
__device__ __forceinline__ void load_sum(uint32_t (&words)[all], const uint32_t* from,
                                         int awaited) {
  constexpr int group = 8;
#pragma unroll
  for (int i = 0; i < all; ++i) {
    words[i] = load_relaxed_if(i / group * group < awaited, from + i * stride, 0);
  }
}
template <int all, int stride>
__device__ __forceinline__ float finish_sum(uint32_t (&words)[all], const uint32_t* from,
                                            int awaited, uint32_t phase) {
  SentSum<all, stride> sent(from, awaited, phase);
  while (sent.any_missing(words)) sent.load(words);
  return sent.sum(words);
}

// Vectors of the exchange that a lane receives at once, of `all`: no more than there are registers.
FUSED_LSTM_INLINE constexpr int received_at_once(int all) { return all > 8 ? all / 2 : all; }

// Takes the phase off words. Returns what has the phase's bit set where any of them is not there.
template <int count>
__device__ __forceinline__ uint32_t take_phase(uint32_t phase, uint4 (&words)[count]) {
  uint32_t missing = 0;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    words[i].x ^= phase;
    words[i].y ^= phase;
    words[i].z ^= phase;
    words[i].w ^= phase;
    missing |= words[i].x | words[i].y;
    missing |= words[i].z | words[i].w;
  }
  return missing;
}

// Sets `words` to `count` of this lane's vectors of a version, from the `first` on, each at
// from + at[i].
template <int count, int all>
__device__ __forceinline__ void receive(const uint4* from, const int (&at)[all], int first,
                                        uint32_t phase, uint32_t bit, uint4 (&words)[count]) {
  uint32_t missing;
  do {
#pragma unroll
    for (int i = 0; i < count; ++i) words[i] = load_relaxed(from + at[first + i]);
    missing = take_phase(phase, words);
  } while (any_of_warp(missing & bit));
}

// Waits for words that load() has loaded before, and loads them again until they are there.
template <int count, class Load>
__device__ __forceinline__ void await_words(const Load& load, uint32_t phase, uint32_t bit,
                                            uint4 (&words)[count]) {
  while (any_of_warp(take_phase(phase, words) & bit)) load();
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
