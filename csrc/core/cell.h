// The arithmetic of the LSTM cell and of its derivative, once for every device. Free of torch.
//
//   i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)
//   c' = f c + i g     h = o tanh(c')
//
// (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000, as in torch.nn.LSTM.)
// V is a scalar or a SIMD vector. A variant of the cell (zoneout, layer norm, another candidate)
// changes next_cell, next_hidden and their line in cell_backward.
#pragma once

#include "core/numeric.h"

namespace fused_lstm {
namespace {

template <class Scalar>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr int32_t sign_bit = INT32_MIN;
  static constexpr int terms = 7;                   // |r| <= ln(2)/2: next term under 2^-26
  static constexpr float rounder = 12582912 + 127;  // 1.5 * 2^23 + exponent bias
  static constexpr float ln2_high = 0.693359375f;
  static constexpr float ln2_low = -2.12194440e-4f;
  static constexpr float largest = 87.0f;    // e^x, 2^n and their inverses stay normal
  static constexpr float saturated = 20.0f;  // tanh(saturated / 2) rounds to 1
};
template <>
struct Exponential<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr int64_t sign_bit = INT64_MIN;
  static constexpr int terms = 13;
  static constexpr double rounder = 6755399441055744.0 + 1023;
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double largest = 708.0;
  static constexpr double saturated = 40.0;
};

FUSED_LSTM_INLINE constexpr double factorial(int n) { return n < 2 ? 1.0 : n * factorial(n - 1); }

// sum of r^(k - first) / k! for k = first .. last, by Horner's rule.
template <int first, int last, class V>
FUSED_LSTM_INLINE V taylor(V r) {
  using Scalar = typename Lanes<V>::Scalar;
  constexpr Scalar coefficient = static_cast<Scalar>(1.0 / factorial(first));
  if constexpr (first == last) {
    return broadcast<V>(coefficient);
  } else {
    return taylor<first + 1, last>(r) * r + coefficient;
  }
}

// e^x = power + rest power, for |x| <= Exponential::largest: x = n ln 2 + r, power = 2^n,
// rest = e^r - 1. Two terms, so that e^x - 1 and e^x + 1 are rounded once.
template <class V>
struct Split {
  V power, rest;
};

template <class V>
FUSED_LSTM_INLINE Split<V> exponential(V x) {
  using Scalar = typename Lanes<V>::Scalar;
  using Integer = typename Lanes<V>::Integer;
  using E = Exponential<Scalar>;
  // Adding `rounder` leaves n plus the exponent's bias in the low bits of the mantissa.
  const V shifted = x * Scalar(1.4426950408889634) + E::rounder;
  const V n = shifted - E::rounder;
  const V power = bits_as<V>(static_cast<Integer>(bits_as<Integer>(shifted) << E::mantissa_bits));
  const V r = x - n * E::ln2_high - n * E::ln2_low;
  return {power, taylor<2, E::terms>(r) * r * r + r};
}

template <class V>
FUSED_LSTM_INLINE V sigmoid(V x) {
  using Scalar = typename Lanes<V>::Scalar;
  constexpr Scalar largest = Exponential<Scalar>::largest;
  const V bounded = Arithmetic<V>::at_least(Arithmetic<V>::at_most(-x, largest), -largest);
  const Split<V> e = exponential(bounded);
  return Arithmetic<V>::quotient(broadcast<V>(1), e.rest * e.power + Scalar(1) + e.power);
}

template <class V>
FUSED_LSTM_INLINE V tanh(V x) {
  using Scalar = typename Lanes<V>::Scalar;
  using Integer = typename Lanes<V>::Integer;
  using E = Exponential<Scalar>;
  const Integer bits = bits_as<Integer>(x);
  const Integer sign = bits & E::sign_bit;
  const V magnitude = bits_as<V>(static_cast<Integer>(bits ^ sign));
  const Split<V> e = exponential(Arithmetic<V>::at_most(magnitude * Scalar(2), E::saturated));
  const V numerator = e.rest * e.power + (e.power - Scalar(1));
  const V denominator = numerator + Scalar(2);
  const V error = numerator - (denominator - Scalar(2));  // of its rounding
  const V positive = Arithmetic<V>::quotient(numerator, denominator, error);
  return bits_as<V>(static_cast<Integer>(bits_as<Integer>(positive) | sign));
}

// One value for each gate, in the order of nn.LSTM's weight rows.
template <class V>
struct Gates {
  V i, f, g, o;
};

template <class V>
FUSED_LSTM_INLINE Gates<V> activate(const Gates<V>& a) {
  return {sigmoid(a.i), sigmoid(a.f), tanh(a.g), sigmoid(a.o)};
}

template <class V>
FUSED_LSTM_INLINE V next_cell(const Gates<V>& gate, V cell) {
  return gate.f * cell + gate.i * gate.g;
}

template <class V>
FUSED_LSTM_INLINE V next_hidden(V output_gate, V next_cell) {
  return output_gate * tanh(next_cell);
}

template <class V>
struct CellGradient {
  Gates<V> preactivations;
  V cell;  // of c, the cell state before the step
};

// gate: the activations; cell, next_cell: c and c'; grad_hidden, grad_cell: the gradients of h and
// c'; grad_gate: the caller's gradients of the activations.
template <class V>
FUSED_LSTM_INLINE CellGradient<V> cell_backward(const Gates<V>& gate, V cell, V next_cell,
                                                V grad_hidden, V grad_cell,
                                                const Gates<V>& grad_gate) {
  using Scalar = typename Lanes<V>::Scalar;
  constexpr Scalar one = 1;
  const V tanh_c = tanh(next_cell);
  const V dc = grad_cell + grad_hidden * gate.o * (one - tanh_c * tanh_c);
  const V di = grad_gate.i + dc * gate.g;
  const V df = grad_gate.f + dc * cell;
  const V dg = grad_gate.g + dc * gate.i;
  const V do_ = grad_gate.o + grad_hidden * tanh_c;
  return {{di * gate.i * (one - gate.i), df * gate.f * (one - gate.f), dg * (one - gate.g * gate.g),
           do_ * gate.o * (one - gate.o)},
          dc * gate.f};
}

}  // namespace
}  // namespace fused_lstm
