#include "plan/cpu_machine.h"

#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace fused_lstm {
namespace {

// Calls visit(name, figure) for every figure of a machine.
template <class M, class Visit>
void visit_figures(M& m, const Visit& visit) {
  visit("vector_bytes", m.vector_bytes);
  visit("tile_rows", m.tile_rows);
  const char* const caches[] = {"l1_bytes", "l2_bytes", "l3_bytes"};
  for (size_t i = 0; i < m.cache_bytes.size(); ++i) visit(caches[i], m.cache_bytes[i]);
  const char* const rates[] = {"l1_gbps", "l2_gbps", "l3_gbps", "memory_gbps"};
  for (size_t i = 0; i < m.read_gbps.size(); ++i) visit(rates[i], m.read_gbps[i]);
  visit("fma_gflops", m.fma_gflops);
  visit("bf16_gflops", m.bf16_gflops);
  visit("frozen_bf16_gflops", m.frozen_bf16_gflops);
  visit("int8_gops", m.int8_gops);
  visit("division_ns", m.division_ns);
  visit("pack_gbps", m.pack_gbps);
  visit("parallel_us", m.parallel_us);
  visit("barrier_us", m.barrier_us);
}

}  // namespace

double Machine::gbps_of(double bytes) const {
  for (size_t level = 0; level < cache_bytes.size(); ++level) {
    const double room = static_cast<double>(cache_bytes[level]);
    if (bytes <= (level == 0 ? room / 2 : room * 0.9)) return read_gbps[level];
  }
  return read_gbps[3];
}

std::string to_text(const Machine& machine) {
  std::ostringstream text;
  visit_figures(machine, [&](const char* name, const auto& value) {
    text << (text.tellp() > 0 ? ", " : "") << name << "=" << value;
  });
  return text.str();
}

void from_text(std::string_view text, Machine& machine) {
  constexpr std::string_view separators = ", \t\r\n";
  for (;;) {
    const size_t begin = text.find_first_not_of(separators);
    if (begin == std::string_view::npos) return;
    text.remove_prefix(begin);
    const std::string item(text.substr(0, text.find_first_of(separators)));
    text.remove_prefix(item.size());
    const size_t equals = item.find('=');
    const std::string name = item.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : item.substr(equals + 1);
    char* end = nullptr;
    const double number = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0' || !(number >= 0) || number > 1e15) {
      throw std::runtime_error("FUSED_LSTM_MACHINE has '" + item +
                               "', must be a name, =, and a number of 0 or more");
    }
    bool found = false;
    visit_figures(machine, [&](const char* figure, auto& to) {
      if (name != figure) return;
      to = static_cast<std::decay_t<decltype(to)>>(number);
      found = true;
    });
    if (!found) {
      throw std::runtime_error("FUSED_LSTM_MACHINE has '" + name + "', must be one of " +
                               to_text(Machine{}));
    }
  }
}

std::vector<std::pair<std::string, double>> figures_of(const Machine& machine) {
  std::vector<std::pair<std::string, double>> figures;
  visit_figures(machine, [&](const char* name, const auto& value) {
    figures.emplace_back(name, static_cast<double>(value));
  });
  return figures;
}

}  // namespace fused_lstm
