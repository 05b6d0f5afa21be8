// SIMD lanes for numeric.h, as the compiler's own vector types: one source for every width.
#pragma once

#include "../numeric.h"

namespace fused_lstm {
namespace {

template <class T, int lanes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(lanes * sizeof(T))));
};

constexpr int vector_bytes = FUSED_LSTM_VECTOR_BYTES;

using Floats = VectorOf<float, vector_bytes / 4>::Type;
using Doubles = VectorOf<double, vector_bytes / 8>::Type;

template <>
struct Lanes<Floats> {
  using Scalar = float;
  static constexpr int count = vector_bytes / 4;
  using Integer = VectorOf<int32_t, count>::Type;
  using Narrow = VectorOf<uint16_t, count>::Type;
};
template <>
struct Lanes<Doubles> {
  using Scalar = double;
  static constexpr int count = vector_bytes / 8;
  using Integer = VectorOf<int64_t, count>::Type;
};

template <class Scalar>
struct VectorFor;
template <>
struct VectorFor<float> {
  using Type = Floats;
};
template <>
struct VectorFor<double> {
  using Type = Doubles;
};

}  // namespace
}  // namespace fused_lstm
