#include "cpu/instruction_set.h"

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

// What the processor and the compiler have.
InstructionSet available() {
  InstructionSet all = {"", false, false, false, false, false};
#ifdef __x86_64__
  all.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  all.avx512 = all.avx2 && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#ifdef FUSED_LSTM_HAS_AVX512VNNI
  all.vnni = all.avx512 && __builtin_cpu_supports("avx512vnni");
#endif
#ifdef FUSED_LSTM_HAS_AVX512BF16
  all.bf16 = all.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  all.amx = all.bf16 && request_amx();
#endif
  return all;
}

// Whether a dot product of pairs, which does twice the work of an FMA, costs little more than one.
// Else bfloat16 is widened to float32.
bool has_quick_dot_products() {
#ifdef FUSED_LSTM_HAS_AVX512BF16
  constexpr int64_t times = 400;
  const double dot = measure_ns(frozen_bfloat16_avx512bf16().multiply, times);
  return dot < 1.3 * measure_ns(frozen_avx512().of_float.multiply, times);
#else
  return false;
#endif
}

// `all` up to the set of this name.
InstructionSet limited(const InstructionSet& all, const std::string& name) {
  if (name == "portable") return {"portable", false, false, false, false, false};
  if (name == "avx2" && all.avx2) return {"avx2", true, false, false, false, false};
  if (name == "avx512" && all.avx512) return {"avx512", true, true, false, false, false};
  if (name == "avx512vnni" && all.vnni) return {"avx512vnni", true, true, true, false, false};
  if (name == "avx512bf16" && all.bf16) return {"avx512bf16", true, true, all.vnni, true, false};
  if (name == "amx" && all.amx) return {"amx", true, true, all.vnni, true, true};
  throw std::runtime_error("FUSED_LSTM_CPU_ISA is '" + name + "'; on this processor it can be " +
                           (all.amx ? "amx, " : "") + (all.bf16 ? "avx512bf16, " : "") +
                           (all.vnni ? "avx512vnni, " : "") + (all.avx512 ? "avx512, " : "") +
                           (all.avx2 ? "avx2, " : "") + "portable");
}

InstructionSet choose() {
  const InstructionSet all = available();
  const char* const forced = std::getenv("FUSED_LSTM_CPU_ISA");
  if (forced && *forced) return limited(all, forced);
  return limited(all, all.amx                                ? "amx"
                      : all.bf16 && has_quick_dot_products() ? "avx512bf16"
                      : all.vnni                             ? "avx512vnni"
                      : all.avx512                           ? "avx512"
                      : all.avx2                             ? "avx2"
                                                             : "portable");
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace fused_lstm::cpu
