// Which kernel a call takes, decided here and nowhere else: a pure function of the problem and of
// the device. Free of torch.
#pragma once

#include <cstdint>

namespace fused_lstm {

struct Problem {
  bool cuda;
  int threads;         // of a CPU
  bool team;           // they all run at once, so that one may wait for another
  int64_t length;      // T
  int64_t batch;       // B
  int64_t rows;        // T * B, or what a packed sequence has of them
  int64_t hidden;      // H
  int64_t projection;  // P; H without a projection
  int64_t input;       // D
  int64_t directions;
  int64_t lanes;  // of a vector, where a weight that is not packed can be multiplied; else 0
};

enum class Kernel {
  direct,    // CPU, few sequences: dot products with the recurrent weights where they lie
  panels,    // CPU: tiles of sequences and units over weights packed into panels
  streamed,  // CUDA: a GEMM and one fused pointwise launch for each step
};

struct Plan {
  Kernel kernel;

  // Of a CPU. Parts of the batch go through time independently; parts of the hidden units wait for
  // one another at each step.
  int64_t batch_slices;
  int64_t unit_slices;
  bool parallel;          // spread slices and directions over the threads
  int64_t chunk;          // steps whose products with the input are taken together
  bool direct_input;      // the products with weight_ih are dot products
  bool direct_recurrent;  // those with weight_hh are
  bool pack_input;        // pack weight_ih ahead; else each panel when it is needed
  bool pack_recurrent;    // the same of weight_hh
  bool turn_input;        // weight_ih is not packed at all: rows of input are vectors' lanes
  bool turn_recurrent;    // the same of weight_hh
};

Plan make_plan(const Problem& problem);

const char* kernel_name(Kernel kernel);

}  // namespace fused_lstm
