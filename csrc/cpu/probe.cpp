// Measures what a plan knows of this machine.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/timer.h"
#include "plan/plan.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif
#ifdef __x86_64__
#include <emmintrin.h>
#endif

namespace fused_lstm::cpu {
namespace {

// Bytes of a core's data cache of this level, 1 to 3; 0 if the system does not say.
int64_t cache_bytes(int level) {
#ifdef __APPLE__
  const char* const names[] = {"hw.l1dcachesize", "hw.l2cachesize", "hw.l3cachesize"};
  int64_t bytes = 0;
  size_t size = sizeof(bytes);
  return sysctlbyname(names[level - 1], &bytes, &size, nullptr, 0) == 0 ? bytes : 0;
#elif defined(__linux__)
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::ifstream level_file(folder + "level"), type_file(folder + "type"),
        size_file(folder + "size");
    int of_file = 0;
    std::string type, unit;
    int64_t size = 0;
    if (!(level_file >> of_file) || !(type_file >> type) || !(size_file >> size)) continue;
    if (of_file != level || type == "Instruction") continue;
    size_file >> unit;
    return size << (unit == "M" ? 20 : unit == "K" ? 10 : 0);
  }
  // glibc's figure of L3 is that of all its instances.
#ifdef _SC_LEVEL1_DCACHE_SIZE
  const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  return std::max(0L, sysconf(names[level - 1]));
#else
  return 0;
#endif
#else
  return 0;
#endif
}

// GB/s of reading `bytes` again and again.
double read_gbps(const Probes& probes, const float* from, int64_t bytes) {
  const int64_t elements = bytes / 4 / (8 * probes.lanes) * (8 * probes.lanes);
  const int64_t repeats = std::max<int64_t>(1, (1 << 20) / bytes);
  volatile float sink = 0;
  const double ns = quickest_ns(4, [&] {
    for (int64_t i = 0; i < repeats; ++i) sink = probes.read(from, elements);
  });
  return static_cast<double>(4 * elements * repeats) / ns;
}

// The same from memory: of lines that no cache has.
double memory_gbps(const Probes& probes, const float* from, int64_t bytes) {
#ifdef __x86_64__
  const int64_t elements = bytes / 4 / (8 * probes.lanes) * (8 * probes.lanes);
  volatile float sink = 0;
  double best = 0;
  for (int run = 0; run < 3; ++run) {
    for (int64_t i = 0; i < elements; i += 16) _mm_clflush(from + i);
    _mm_mfence();
    const double ns = quickest_ns(1, [&] { sink = probes.read(from, elements); });
    best = std::max(best, static_cast<double>(4 * elements) / ns);
  }
  return best;
#else
  return read_gbps(probes, from, bytes) / 2;  // a guess: lines cannot be put out of the caches
#endif
}

double pack_gbps(const Functions<Float>& functions, const float* weight, int64_t rows,
                 int64_t columns) {
  const Packing<Float> packing = {weight, rows, columns, PanelLayout::gates};
  const int64_t panels = functions.panel_count(packing);
  const int64_t elements = panels * functions.panel_size(packing);
  const std::unique_ptr<float[]> to(new float[elements]());
  const double ns = quickest_ns(3, [&] {
    for (int64_t panel = 0; panel < panels; ++panel) functions.pack(packing, panel, to.get());
  });
  return static_cast<double>(4 * rows * columns) / ns;
}

Machine measure() {
  const Kernels& table = kernels();
  const Probes& probes = table.probes;
  Machine m;
  m.tile_rows = probes.tile_rows;
  for (int level = 1; level <= 3; ++level) {
    if (const int64_t bytes = cache_bytes(level)) m.cache_bytes[level - 1] = bytes;
  }
  if (m.cache_bytes[2] < m.cache_bytes[1]) m.cache_bytes[2] = m.cache_bytes[1];  // there is none

  measure_arithmetic(probes, m);
  constexpr int64_t times = 400;
  if (const Bf16Operands* const bf16 = table.bf16_operands) {
    const double all = static_cast<double>(bf16->flops * times);
    m.bf16_gflops = all / measure_ns(bf16->multiply, times);
  }
  const auto rate_of = [&](const auto& functions) {
    const double all = static_cast<double>(functions.operations * times);
    return all / measure_ns(functions.multiply, times);
  };
  m.frozen_bf16_gflops = rate_of(frozen_kernels().of_bfloat16);
  m.int8_gops = rate_of(frozen_kernels().of_int8);

  // L3 is measured by twice what L2 holds: the lines that come first are gone when the last came.
  const int64_t bytes = std::min<int64_t>(2 * m.cache_bytes[1], 8 << 20);
  constexpr int64_t line = 64;
  const std::vector<float> memory(static_cast<size_t>((bytes + line) / 4), 1.0f);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  const float* const lines = memory.data() + (line - address % line) % line / 4;
  m.read_gbps[0] = read_gbps(probes, lines, m.cache_bytes[0] / 2);
  m.read_gbps[1] = read_gbps(probes, lines, m.cache_bytes[1] / 2);
  m.read_gbps[2] = read_gbps(probes, lines, bytes);
  m.read_gbps[3] = memory_gbps(probes, lines, bytes / 2);
  for (size_t level = 1; level < m.read_gbps.size(); ++level) {
    m.read_gbps[level] = std::min(m.read_gbps[level], m.read_gbps[level - 1]);
  }
  m.pack_gbps = pack_gbps(table.of_float, lines, 256, std::min<int64_t>(256, bytes / 1024));
  return m;
}

}  // namespace

void apply_given_figures(Machine& machine) {
  const char* const given = std::getenv("FUSED_LSTM_MACHINE");
  if (!given || !*given) return;
  if (std::string(given).find('=') != std::string::npos) return from_text(given, machine);
  std::ostringstream text;
  std::ifstream file(given);
  if (!(text << file.rdbuf())) {
    throw std::runtime_error("FUSED_LSTM_MACHINE is '" + std::string(given) +
                             "', must be a file, or name=number for each figure");
  }
  from_text(text.str(), machine);
}

const Machine& measured_machine() {
  static const Machine machine = [] {
    Machine measured = measure();
    apply_given_figures(measured);
    divides = make_division_plan(measured);
    return measured;
  }();
  return machine;
}

}  // namespace fused_lstm::cpu
