// Frozen layers in AMX tiles, emulated, against the same layers by AVX512-BF16 and AVX512-VNNI:
// int8 to the bit, bfloat16 to the rounding of sums in another order. Prints what differs.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "frozen/packed_layer.h"

namespace fused_lstm::cpu {

static bool in_tiles = false;
bool divides = false;

// In the place of csrc/cpu/frozen_kernels.cpp
const FrozenKernels& frozen_kernels() {
  static FrozenKernels table = {};
  table.of_bfloat16 = in_tiles ? frozen_bfloat16_amx() : frozen_bfloat16_avx512bf16();
  table.of_int8 = in_tiles ? frozen_int8_amx() : frozen_int8_avx512vnni();
  return table;
}

}  // namespace fused_lstm::cpu

using namespace fused_lstm;
using namespace fused_lstm::frozen;

namespace {

std::mt19937 generator(1);

std::vector<float> random_floats(int64_t count, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// The outputs, h_n and c_n of a call.
std::vector<float> run(bool in_tiles, const Shape& s, Format format,
                       const std::array<Weights, 2>& weights, Batch batch) {
  cpu::in_tiles = in_tiles;
  const int64_t bytes = packed_bytes(s, format);
  std::vector<char> packed(bytes + 64), scratch;
  pack(s, format, weights, packed.data());
  const Layer layer(packed.data(), bytes);
  const int64_t states = s.directions * batch.B;
  const int64_t output = batch.T * states * s.projection_size;
  std::vector<float> results(output + states * (s.projection_size + s.hidden_size));
  batch.output = results.data();
  batch.h_n = batch.output + output;
  batch.c_n = batch.h_n + states * s.projection_size;
  const cpu::Slices slices = one_part(s, batch.B);
  scratch.resize(layer.scratch_bytes(batch.T, batch.B, slices));
  layer.forward(batch, slices, scratch.data());
  return results;
}

}  // namespace

int main() {
  int failures = 0, cases = 0;
  for (const Format format : {Format::bfloat16, Format::int8}) {
    for (const int64_t B : {1, 2, 3, 16, 21}) {
      for (const auto [D, H, P, directions] :
           {std::array<int64_t, 4>{10, 64, 64, 1}, {67, 37, 37, 2}, {130, 65, 17, 2}}) {
        const Shape s = {D, H, P, directions, P != H, true};
        const float scale = 1 / std::sqrt(static_cast<float>(H));
        std::vector<std::vector<float>> all;
        const auto matrix = [&](int64_t rows, int64_t columns) -> Matrix {
          all.push_back(random_floats(rows * columns, scale));
          return {all.back().data(), nullptr, Format::float32};
        };
        std::array<Weights, 2> weights = {};
        for (int64_t d = 0; d < directions; ++d) {
          weights[d] = {matrix(4 * H, D), matrix(4 * H, P), matrix(P, H), nullptr, nullptr};
          for (const float** bias : {&weights[d].bias_ih, &weights[d].bias_hh}) {
            *bias = static_cast<const float*>(matrix(4 * H, 1).data);
          }
        }
        constexpr int64_t T = 5;
        const std::vector<float> input = random_floats(T * B * D, 1);
        const std::vector<float> h_0 = random_floats(directions * B * P, 1);
        const std::vector<float> c_0 = random_floats(directions * B * H, 1);
        const Batch batch = {T,          B,          nullptr, {},      input.data(),
                             h_0.data(), c_0.data(), nullptr, nullptr, nullptr};
        const std::vector<float> expected = run(false, s, format, weights, batch);
        const std::vector<float> found = run(true, s, format, weights, batch);
        double worst = 0;
        for (size_t i = 0; i < found.size(); ++i) {
          worst = std::fmax(worst, std::fabs(found[i] - expected[i]));
        }
        // A hidden state that another order of a sum rounds to its neighbour is 2^-9 off.
        const double limit = format == Format::int8 ? 0 : 0x1p-7;
        ++cases;
        if (worst <= limit) continue;
        ++failures;
        std::printf("%s, B %d, D %d, H %d, P %d: off by %g\n", format_name(format),
                    static_cast<int>(B), static_cast<int>(D), static_cast<int>(H),
                    static_cast<int>(P), worst);
      }
    }
  }
  std::printf("%d cases, %d wrong\n", cases, failures);
  return failures > 0;
}
