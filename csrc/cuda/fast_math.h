// float32 whose gates are computed by a GPU's approximate instructions: ex2 for the exponential,
// rcp for the quotient. Free of torch.
//
// Error in units in the last place (ulp) of the result, given at most 2 ulp of ex2 and 1 of rcp:
//   sigmoid(x) = 1 / (1 + 2^p), p = -x log2(e). ex2 takes p as rounded, off by `rest`, for which
//     2^p is multiplied by 1 - rest ln(2). So 2^p is off by 2.5 ulp, the sum by half an ulp more.
//     An ulp of a sum near a power of two is two of the quotient, which adds 1: at most 7.
//   tanh(x) = sign(x) (1 - e) / (1 + e), e = 2^(-2 |x| log2(e)). From |x| = 0.55 on, e < 1/3: its
//     error counts by less than half, and the whole is at most 3.9. Below, an odd polynomial fitted
//     to tanh, at most 2.8.
// tests/test_fast_math.py measures both.
#pragma once

#include "core/cell.h"
#include "cuda/ptx.h"

namespace fused_lstm {
namespace cuda {
namespace {

struct FastFloat {
  float value;

  FastFloat() = default;
  FUSED_LSTM_INLINE FastFloat(float x) : value(x) {}
};

FUSED_LSTM_INLINE FastFloat operator+(FastFloat a, FastFloat b) { return a.value + b.value; }
FUSED_LSTM_INLINE FastFloat operator-(FastFloat a, FastFloat b) { return a.value - b.value; }
FUSED_LSTM_INLINE FastFloat operator*(FastFloat a, FastFloat b) { return a.value * b.value; }

__device__ __forceinline__ FastFloat sigmoid(FastFloat x) {
  constexpr float log2e = 1.44269502f, log2e_rest = 1.92596303e-8f, ln2 = 0.693147181f;
  const float p = -log2e * x.value;
  const float rest =
      fmaf(log2e_rest, x.value, fmaf(log2e, x.value, p));  // p less what it should be
  // fmaxf drops a NaN: that of an infinite x, whose 2^p is exact.
  const float correction = fmaf(fmaxf(rest, -1.0f), -ln2, 1.0f);
  return reciprocal_approx(fmaf(exp2_approx(p), correction, 1.0f));
}

__device__ __forceinline__ FastFloat tanh(FastFloat x) {
  const float magnitude = fabsf(x.value);
  const float e = exp2_approx(-2.88539008f * magnitude);
  const float large = copysignf((1.0f - e) * reciprocal_approx(1.0f + e), x.value);
  const float s = x.value * x.value;
  const float polynomial =
      fmaf(fmaf(fmaf(0.017310211f, s, -0.053153336f), s, 0.13328539f), s, -0.3333329f);
  const float small = fmaf(polynomial * s, x.value, x.value);
  return magnitude < 0.55f ? small : large;
}

}  // namespace
}  // namespace cuda

namespace {

template <>
struct Lanes<cuda::FastFloat> {
  using Scalar = float;
};

}  // namespace
}  // namespace fused_lstm
