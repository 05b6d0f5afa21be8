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

// `count` values of a lane at a step: zero where they do not exist.
template <class Value, int count>
class Awaited {
 public:
  __device__ __forceinline__ void load(const Value* const (&from)[count],
                                       const bool (&exists)[count]) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      from_[i] = from[i];
      exists_[i] = exists[i];
    }
    load();
  }
  // Once no lane's are absent; awaits: whether another layer stores them.
 __device__ __forceinline__ const Value (&get(bool awaits)) [count] {
   while (any_of_warp(awaits && any_absent())) load();
   return values_;
 }

 private : __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < count; ++i) values_[i] = load_relaxed_if(exists_[i], from_[i], Value{});
  }
  __device__ __forceinline__ bool any_absent() const {
    bool any = false;
#pragma unroll
    for (int i = 0; i < count; ++i) any = any || is_absent(values_[i]);
    return any;
  }

  const Value* from_[count];
  bool exists_[count];
  Value values_[count];
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
