// Loops whose time says what the plan's figures of a machine are: no other work, nothing from
// memory but what is measured.
#pragma once

#include "cpu/gemm.inl"

namespace fused_lstm::cpu {
namespace {

constexpr int kProbeSums = 12;  // independent, more than hide an instruction's latency

// `times` FMAs, or dot products, of each sum.
template <class V, class Operand>
float probe_multiply(int64_t times) {
  using M = Multiply<V, Operand>;
  alignas(64) Operand weights[Lanes<V>::count * M::step] = {};
  Operand x[M::step] = {};
  float start[kProbeSums] = {};
  // Opaque: equal sums would be computed once.
  __asm__ volatile("" : : "r"(weights), "r"(x), "r"(start) : "memory");
  const V w = M::load_weights(weights), factor = M::load_factor(x);
  V sums[kProbeSums];
  for (int n = 0; n < kProbeSums; ++n) sums[n] = broadcast<V>(start[n]);
  for (int64_t i = 0; i < times; ++i) {
    for (V& sum : sums) sum = M::add(sum, factor, w);
  }
  V all = {};
  for (const V& sum : sums) all += sum;
  return all[0];
}

// `times` divisions of each of four vectors.
template <class V>
float probe_divide(int64_t times) {
  V values[4];
  for (int i = 0; i < 4; ++i) values[i] = broadcast<V>(1.5f + static_cast<float>(i));
  const V divisor = broadcast<V>(1.0f + 0x1p-20f);
  for (int64_t i = 0; i < times; ++i) {
    for (V& value : values) value = value / divisor;
  }
  return (values[0] + values[1] + values[2] + values[3])[0];
}

// Reads `elements`, a multiple of eight vectors.
template <class V>
float probe_read(const float* from, int64_t elements) {
  using Integer = typename Lanes<V>::Integer;
  constexpr int lanes = Lanes<V>::count;
  Integer bits[8] = {};
  for (int64_t i = 0; i < elements; i += 8 * lanes) {
    for (int v = 0; v < 8; ++v) {
      bits[v] |= bits_as<Integer>(load<V>(from + i + v * lanes, lanes));
    }
  }
  Integer all = {};
  for (const Integer& one : bits) all |= one;
  return static_cast<float>(all[0]);
}

}  // namespace
}  // namespace fused_lstm::cpu
