// The choice of the instruction set, once, at the first call.
#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fused_lstm {
namespace cpu {
namespace {

const Kernels& choose() {
  bool avx2 = false, avx512 = false;
#ifdef __x86_64__
  avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  const char* forced = std::getenv("FUSED_LSTM_CPU_ISA");
  const std::string name = forced ? forced : avx512 ? "avx512" : avx2 ? "avx2" : "portable";
  if (name == "portable") return kernels_portable();
#ifdef __x86_64__
  if (name == "avx2" && avx2) return kernels_avx2();
  if (name == "avx512" && avx512) return kernels_avx512();
#endif
  throw std::runtime_error("FUSED_LSTM_CPU_ISA is '" + name + "'; on this processor it can be " +
                           (avx512 ? "avx512, " : "") + (avx2 ? "avx2, " : "") + "portable");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace cpu
}  // namespace fused_lstm
