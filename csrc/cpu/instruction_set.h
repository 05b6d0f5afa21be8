// Which instructions the CPU kernels may use. Free of torch.
#pragma once

namespace fused_lstm::cpu {

struct InstructionSet {
  const char* name;  // of the best
  bool avx2, avx512;
  bool dotprod, avxvnni, avx512vnni;  // dot products of 8-bit integers
  bool bf16;                          // AVX512-BF16
  bool amx;                           // AMX-BF16 and AMX-INT8
};

// What this processor has, or what the environment variable FUSED_LSTM_CPU_ISA leaves of it; chosen
// at the first call. Throws std::runtime_error if the processor lacks what that one names.
const InstructionSet& instruction_set();

}  // namespace fused_lstm::cpu
