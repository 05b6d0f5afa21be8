// The kernels of the chosen instruction set.
#include "cpu/kernels.h"

#include "cpu/instruction_set.h"

namespace fused_lstm::cpu {
namespace {

Kernels choose() {
  const InstructionSet& set = instruction_set();
  Kernels table = kernels_portable();
#ifdef __x86_64__
  if (set.avx2) table = kernels_avx2();
  if (set.avx512) table = kernels_avx512();
#endif
#ifdef FUSED_LSTM_HAS_AVX512BF16
  if (set.bf16) table.bf16_operands = &bf16_operands_avx512bf16();
#endif
#ifdef FUSED_LSTM_HAS_AMX
  if (set.amx) table.bf16_operands = &bf16_operands_amx();
#endif
  table.name = set.name;
  return table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace fused_lstm::cpu
