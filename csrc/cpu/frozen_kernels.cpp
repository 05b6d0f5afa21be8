// The kernels of frozen layers, of the chosen instruction set.
#include "cpu/instruction_set.h"
#include "cpu/kernels.h"

namespace fused_lstm::cpu {
namespace {

FrozenKernels choose() {
  const InstructionSet& set = instruction_set();
  FrozenKernels table = frozen_portable();
#ifdef __x86_64__
  if (set.avx2) table = frozen_avx2();
  if (set.avx512) table = frozen_avx512();
#endif
#ifdef FUSED_LSTM_HAS_DOTPROD
  if (set.dotprod) table.of_int8 = frozen_int8_dotprod();
#endif
#ifdef FUSED_LSTM_HAS_AVXVNNI
  if (set.avxvnni) table.of_int8 = frozen_int8_avxvnni();
#endif
#ifdef FUSED_LSTM_HAS_AVX512VNNI
  if (set.avx512vnni) table.of_int8 = frozen_int8_avx512vnni();
#endif
#ifdef FUSED_LSTM_HAS_AVX512BF16
  if (set.bf16) table.of_bfloat16 = frozen_bfloat16_avx512bf16();
#endif
#ifdef FUSED_LSTM_HAS_AMX
  if (set.amx) {
    table.of_bfloat16 = frozen_bfloat16_amx();
    table.of_int8 = frozen_int8_amx();
  }
#endif
  return table;
}

}  // namespace

const FrozenKernels& frozen_kernels() {
  static const FrozenKernels chosen = choose();
  return chosen;
}

}  // namespace fused_lstm::cpu
