// The CPU kernels: one table of functions for each instruction set. Free of torch.
#pragma once

#include "../sequence.h"

namespace fused_lstm {
namespace cpu {

using Float = Types<float, float, float>;
using Double = Types<double, double, double>;
using HalfFloat = Types<Half, float, float>;
using BFloat16Float = Types<BFloat16, float, float>;

// The right factor B [depth, columns] of a product, to be copied into panels that the kernels
// read from front to back. A panel holds four vectors of columns for each k; with `gates`
// (columns = 4H) these are the same units of the four gates, else neighbours.
template <class Scalar>
struct Factor {
  const Scalar* data;  // B[k, n] at data[k * stride_k + n * stride_n]
  int64_t depth, columns;
  int64_t stride_k, stride_n;
  bool gates;
};

template <class Scalar>
struct Packing {
  int64_t (*panels)(const Factor<Scalar>&);      // how many
  int64_t (*panel_size)(const Factor<Scalar>&);  // numbers in each
  // panel: one of them; to: where the first panel of all begins
  void (*pack)(const Factor<Scalar>&, int64_t panel, Scalar* to);
};

// Takes the sequences begin .. end of the batch through all steps.
template <class Types>
using Forward = void (*)(const ForwardParams<Types>&, int64_t begin, int64_t end);
template <class Types>
using Backward = void (*)(const BackwardParams<Types>&, int64_t begin, int64_t end);

template <class Types>
struct Pair {
  Forward<Types> forward;
  Backward<Types> backward;
};

struct Kernels {
  const char* name;
  Packing<float> pack_float;
  Packing<double> pack_double;
  Pair<Float> of_float;
  Pair<Double> of_double;
  Pair<HalfFloat> of_half;
  Pair<BFloat16Float> of_bfloat16;
};

// The best table for this processor, or a lower one that FUSED_LSTM_CPU_ISA names. Throws
// std::runtime_error if that names none that this processor has.
const Kernels& kernels();

const Kernels& kernels_portable();
#ifdef __x86_64__
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace cpu
}  // namespace fused_lstm
