// Which kernel a call takes, decided here and nowhere else: a pure function of the problem and of
// the device. Free of torch.
#pragma once

#include <cstdint>

namespace fused_lstm {

struct Problem {
  bool cuda;
  int threads;         // of a CPU
  int64_t length;      // T
  int64_t batch;       // B
  int64_t rows;        // T * B, or what a packed sequence has of them
  int64_t hidden;      // H
  int64_t projection;  // P; H without a projection
  int64_t input;       // D
  int64_t directions;
};

enum class Kernel {
  single_step,  // CPU: one step needs no loop; its recurrent product is one library GEMM
  panels,       // CPU: the input's product ahead, then the walk over weights packed into panels
  merged,       // CPU: both products of a step in one pass over the panels
  streamed,     // CUDA: a GEMM and one fused pointwise launch for each step
};

struct Plan {
  Kernel kernel;
  int64_t slices;  // parts of the batch that go through time independently
  bool parallel;   // spread slices and directions over the threads
};

Plan make_plan(const Problem& problem);

const char* kernel_name(Kernel kernel);

}  // namespace fused_lstm
