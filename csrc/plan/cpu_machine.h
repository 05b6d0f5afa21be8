// What a plan knows of a CPU. Free of torch.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fused_lstm {

// Figures of one core that runs the chosen instruction set. csrc/cpu/probe.cpp measures them.
struct Machine {
  int64_t vector_bytes = 16;
  int64_t tile_rows = 3;  // rows of activations in a tile of four vectors
  std::array<int64_t, 3> cache_bytes = {32 << 10, 512 << 10, 8 << 20};  // L1 data, L2, L3
  std::array<double, 4> read_gbps = {100, 50, 20, 10};  // of vectors from L1, L2, L3, memory
  double fma_gflops = 50;                               // float32
  double bf16_gflops = 0;  // bfloat16 operands, by dot products or in tiles; 0: widened instead
  double frozen_bf16_gflops = 50;  // frozen layers in bfloat16, widened or not
  double int8_gops = 100;          // frozen layers in int8
  double division_ns = 5;          // a vector of float32 quotients
  double pack_gbps = 5;            // of a weight into gate panels, bytes of the weight
  double parallel_us = 5;          // to start a parallel loop on all threads and end it
  double barrier_us = 0.5;         // a barrier of all threads

  // Nanoseconds of one FMA of `lanes` float32 lanes.
  double fma_ns(int64_t lanes) const { return 2.0 * static_cast<double>(lanes) / fma_gflops; }
  // GB/s from the nearest cache that holds so many bytes and leaves room for as many again.
  double gbps_of(double bytes) const;
};

// "l1_bytes=32768, fma_gflops=117.5, ...": every figure by name; and its inverse, which changes the
// figures that the text has. Throws std::runtime_error for a name or a value that is none.
std::string to_text(const Machine& machine);
void from_text(std::string_view text, Machine& machine);
// (name, value) of every figure.
std::vector<std::pair<std::string, double>> figures_of(const Machine& machine);

}  // namespace fused_lstm
