#include "cpu/instruction_set.h"

#include "cpu/kernels.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef FUSED_LSTM_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(FUSED_LSTM_HAS_DOTPROD) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace fused_lstm::cpu {
namespace {

// Whether this process may use AMX tiles. Linux requires a request, because they make a thread's
// state larger.
bool request_amx() {
#ifdef FUSED_LSTM_HAS_AMX
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) && (d >> 25 & 1) && (d >> 22 & 1);  // AMX-TILE, -INT8, -BF16
  constexpr int request_permission = 0x1023, tile_data = 18;
  return tiles && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

// What the processor and the compiler have.
InstructionSet available() {
  InstructionSet all = {};
#ifdef __x86_64__
  all.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  all.avx512 = all.avx2 && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#ifdef FUSED_LSTM_HAS_AVXVNNI
  unsigned a = 0, b = 0, c = 0, d = 0;
  all.avxvnni = all.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#endif
#ifdef FUSED_LSTM_HAS_AVX512VNNI
  all.avx512vnni = all.avx512 && __builtin_cpu_supports("avx512vnni");
#endif
#ifdef FUSED_LSTM_HAS_AVX512BF16
  all.bf16 = all.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  all.amx = all.bf16 && all.avx512vnni && request_amx();
#endif
#ifdef FUSED_LSTM_HAS_DOTPROD
#ifdef __APPLE__
  all.dotprod = true;  // each of Apple's processors
#else
  all.dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
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

// The sets by name, the best first, each with what `all` has of it and of those that it includes.
std::vector<InstructionSet> possible(const InstructionSet& all) {
  std::vector<InstructionSet> sets;
  const auto add = [&](const char* name, bool has, InstructionSet set) {
    set.name = name;
    if (has) sets.insert(sets.begin(), set);
  };
  InstructionSet set = {};
  add("portable", true, set);
  set.dotprod = all.dotprod;
  add("dotprod", all.dotprod, set);
  set.avx2 = all.avx2;
  add("avx2", all.avx2, set);
  InstructionSet client = set;
  client.avxvnni = all.avxvnni;
  add("avxvnni", all.avxvnni, client);
  set.avx512 = all.avx512;
  add("avx512", all.avx512, set);
  set.avx512vnni = all.avx512vnni;
  add("avx512vnni", all.avx512vnni, set);
  set.bf16 = all.bf16;
  add("avx512bf16", all.bf16, set);
  set.amx = all.amx;
  add("amx", all.amx, set);
  return sets;
}

InstructionSet choose() {
  const std::vector<InstructionSet> sets = possible(available());
  const char* const forced = std::getenv("FUSED_LSTM_CPU_ISA");
  if (!forced || !*forced) {
    for (const InstructionSet& set : sets) {
      if (!set.bf16 || set.amx || has_quick_dot_products()) return set;
    }
  }
  std::string names;
  for (const InstructionSet& set : sets) {
    if (std::string(set.name) == forced) return set;
    names += (names.empty() ? "" : ", ") + std::string(set.name);
  }
  throw std::runtime_error("FUSED_LSTM_CPU_ISA is '" + std::string(forced) +
                           "'; on this processor it can be " + names);
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace fused_lstm::cpu
