// The tables of functions of one instruction set. isa_*.cpp compile this file, each under its own,
// with FUSED_LSTM_VECTOR_BYTES and FUSED_LSTM_TILE_ROWS set, and with
//
//   FUSED_LSTM_NAME                                         all of them, without special operands
//   FUSED_LSTM_BF16_OPERANDS                                those of bfloat16 operands
//   FUSED_LSTM_AMX beside it                                likewise, and frozen layers in int8
//   FUSED_LSTM_AVX512VNNI, _AVXVNNI, _NEON_DOTPROD          frozen layers in int8
//
// FUSED_LSTM_FROZEN_ONLY, for the C library, leaves out all but the tables of frozen layers.
// FUSED_LSTM_ISA ends the names of the tables. Nothing of the standard library that could be
// compiled out of line is used in what is included: the linker would keep one copy for all
// instruction sets.
#pragma once

#include "cpu/frozen.inl"
#include "cpu/lstm.inl"
#include "cpu/probe.inl"

#define FUSED_LSTM_JOIN(a, b) a##b
#define FUSED_LSTM_NAMED(prefix, isa) FUSED_LSTM_JOIN(prefix, isa)

namespace fused_lstm::cpu {

#if defined(FUSED_LSTM_NAME)
namespace {
constexpr Probes probes = {Lanes<Floats>::count,          FUSED_LSTM_TILE_ROWS, kProbeSums,
                           probe_multiply<Floats, float>, probe_divide<Floats>, probe_read<Floats>};
}  // namespace

#ifndef FUSED_LSTM_FROZEN_ONLY
const Kernels& FUSED_LSTM_NAMED(kernels_, FUSED_LSTM_ISA)() {
  static constexpr Kernels table = {
      FUSED_LSTM_NAME,      kTileVectors * lanes_of<Float>(), functions<Float>, functions<Double>,
      functions<HalfFloat>, functions<BFloat16Float>,         probes,           nullptr};
  return table;
}
#endif

const FrozenKernels& FUSED_LSTM_NAMED(frozen_, FUSED_LSTM_ISA)() {
  static constexpr FrozenKernels table = {frozen_functions<FrozenFloat>,
                                          frozen_functions<FrozenBFloat16>,
                                          frozen_functions<FrozenInt8>, probes};
  return table;
}
#elif defined(FUSED_LSTM_BF16_OPERANDS)
#ifndef FUSED_LSTM_FROZEN_ONLY
const Bf16Operands& FUSED_LSTM_NAMED(bf16_operands_, FUSED_LSTM_ISA)() {
#ifdef FUSED_LSTM_AMX
  static constexpr Bf16Operands table = {functions<BFloat16Operands>, probe_amx, kAmxProbeFlops};
#else
  constexpr int64_t flops = 2 * 2 * Lanes<Floats>::count * kProbeSums;
  static constexpr Bf16Operands table = {functions<BFloat16Operands>,
                                         probe_multiply<Floats, BFloat16>, flops};
#endif
  return table;
}
#endif

const FrozenFunctions<FrozenBFloat16>& FUSED_LSTM_NAMED(frozen_bfloat16_, FUSED_LSTM_ISA)() {
  return frozen_functions<FrozenBFloat16>;
}
#endif

#if !defined(FUSED_LSTM_NAME) && (defined(FUSED_LSTM_AMX) || !defined(FUSED_LSTM_BF16_OPERANDS))
const FrozenFunctions<FrozenInt8>& FUSED_LSTM_NAMED(frozen_int8_, FUSED_LSTM_ISA)() {
  return frozen_functions<FrozenInt8>;
}
#endif

}  // namespace fused_lstm::cpu
