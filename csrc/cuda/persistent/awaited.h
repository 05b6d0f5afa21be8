// Results of a layer that another layer of the launch awaits: the hidden states of a layer, and its
// gates' gradients, in the tensors that the caller gets. Free of torch.
//
//   layer that has them                          layer that awaits them
//     stores each word once                        loads its words a step ahead,
//                                                  and again while any of them is absent
//
// Before the launch the memory is filled with bytes of 0xff: NaNs that no instruction makes, whose
// NaN is 0x7fffffff, or 0x7fff in 16 bits. Accesses are relaxed: each word is whole, words come in
// any order, and no fence is needed.
#pragma once

#include <type_traits>

#include "cuda/ptx.h"

namespace fused_lstm {
namespace cuda {
namespace {

constexpr uint32_t kAbsentWord = 0xffffffff;

__device__ __forceinline__ bool is_absent(uint2 words) {
  return words.x == kAbsentWord || words.y == kAbsentWord;
}
template <class Storage>
__device__ __forceinline__ bool is_absent(Storage x) {
  if constexpr (std::is_same_v<Storage, float>) {
    return __float_as_uint(x) == kAbsentWord;
  } else {
    return x.bits == 0xffff;
  }
}

template <class Value, int count>
__device__ __forceinline__ bool any_absent(const Value (&values)[count]) {
  bool any = false;
#pragma unroll
  for (int i = 0; i < count; ++i) any = any || is_absent(values[i]);
  return any;
}

// Until no lane's values are absent: load() loads them again. awaits: whether a layer stores them.
template <class Load, class... Values>
__device__ __forceinline__ void await(bool awaits, const Load& load, const Values&... values) {
  while (any_of_warp(awaits && (any_absent(values) || ...))) load();
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
