// Chooses the instruction set, once, at the first call.
#include "cpu/kernels.h"

#ifdef FUSED_LSTM_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fused_lstm::cpu {
namespace {

bool has_avx512bf16() {
#ifdef FUSED_LSTM_HAS_AVX512BF16
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Whether this process may use AMX tiles. Linux requires a request, because they make a thread's
// state larger.
bool request_amx() {
#ifdef FUSED_LSTM_HAS_AMX
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) && (d >> 22 & 1);  // AMX-TILE, AMX-BF16
  constexpr int request_permission = 0x1023, tile_data = 18;
  return tiles && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

// AVX-512's table with the GEMMs of bfloat16 operands by another instruction set.
#ifdef __x86_64__
[[maybe_unused]] Kernels with_bf16_operands(const char* name, const Bf16Operands& operands) {
  Kernels table = kernels_avx512();
  table.name = name;
  table.bf16_operands = &operands;
  return table;
}
#endif

// Whether a dot product of pairs, which does twice the work of an FMA, costs little more than one.
// Else bfloat16 is widened to float32.
bool has_quick_dot_products() {
#ifdef FUSED_LSTM_HAS_AVX512BF16
  constexpr int64_t times = 400;
  const double dot = measure_ns(bf16_operands_avx512bf16().multiply, times);
  return dot < 1.3 * measure_ns(kernels_avx512().probes.multiply, times);
#else
  return false;
#endif
}

Kernels choose() {
  bool avx2 = false, avx512 = false, avx512bf16 = false, amx = false;
#ifdef __x86_64__
  avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  avx512bf16 = avx512 && has_avx512bf16();
  amx = avx512bf16 && request_amx();
#endif
  const char* const forced = std::getenv("FUSED_LSTM_CPU_ISA");
  const std::string name = forced && *forced                        ? forced
                           : amx                                    ? "amx"
                           : avx512bf16 && has_quick_dot_products() ? "avx512bf16"
                           : avx512                                 ? "avx512"
                           : avx2                                   ? "avx2"
                                                                    : "portable";
  if (name == "portable") return kernels_portable();
#ifdef __x86_64__
  if (name == "avx2" && avx2) return kernels_avx2();
  if (name == "avx512" && avx512) return kernels_avx512();
#endif
#ifdef FUSED_LSTM_HAS_AVX512BF16
  if (name == "avx512bf16" && avx512bf16) {
    return with_bf16_operands("avx512bf16", bf16_operands_avx512bf16());
  }
#endif
#ifdef FUSED_LSTM_HAS_AMX
  if (name == "amx" && amx) return with_bf16_operands("amx", bf16_operands_amx());
#endif
  throw std::runtime_error("FUSED_LSTM_CPU_ISA is '" + name + "'; on this processor it can be " +
                           (amx ? "amx, " : "") + (avx512bf16 ? "avx512bf16, " : "") +
                           (avx512 ? "avx512, " : "") + (avx2 ? "avx2, " : "") + "portable");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace fused_lstm::cpu
