// The CPU kernels: one table of functions for each instruction set. Free of torch.
#pragma once

#include "core/sequence.h"
#include "cpu/barrier.h"
#include "cpu/compiler.h"
#include "plan/kernel.h"

namespace fused_lstm {
namespace cpu {

using Float = Types<float, float, float>;
using Double = Types<double, double, double>;
using HalfFloat = Types<Half, float, float>;
using BFloat16Float = Types<BFloat16, float, float>;
using BFloat16Operands = Types<BFloat16, float, BFloat16>;

// What a gemm of BFloat16Operands reads at once of its left factor (tiles.inl).
constexpr int kAmxRows = 16;
constexpr int kAmxDepth = 32;

// A weight matrix as nn.LSTM has it, row by row, and, where it is packed ahead, its panels.
//   Gate panels: of the transposed W [4H, depth]. A panel belongs to one vector of hidden units
//     and holds, for each k < depth, a vector of W[.., k] for each of the gates i f g o.
//   Plain panels: of W [depth, columns] or its transpose, four neighbouring vectors for each k.
template <class Types>
struct Weight {
  const typename Types::Storage* data;
  const typename Types::Operand* panels;  // or null
};

enum class PanelLayout { gates, plain, plain_transposed };

// A weight [rows, columns] to be packed.
template <class Types>
struct Packing {
  const typename Types::Storage* data;
  int64_t rows, columns;
  PanelLayout layout;
};

// What one thread takes: some sequences, and some of the hidden units of all of them.
struct Part {
  int64_t begin, end;             // sequences
  int64_t first_unit, last_unit;  // hidden units; whole panels but for the end at H
  Barrier* barrier;               // of the parts that share these sequences; null: there are none
  int64_t weight;                 // how many of those this one stands for
  int64_t number;                 // 0, 1, ..: which scratch is its own
};

template <class Types>
struct CpuForwardParams {
  ForwardParams<Types> layer;
  Gemm input_gemm, recurrent_gemm;
  int64_t input_size;                      // D
  const typename Types::Storage* input;    // [N, D]
  Weight<Types> weight_ih;                 // [4H, D]
  Weight<Types> weight_hh;                 // [4H, P]
  Weight<Types> weight_hr;                 // [P, H], packed
  const typename Types::Storage* bias_ih;  // [4H], or null
  const typename Types::Storage* bias_hh;  // [4H], or null
  int64_t chunk;  // steps whose preactivations with the input are taken at once
  typename Types::Operand* hidden[2];  // [B + 15, hidden_stride] a step reads one, writes the other
  typename Types::Accum* scratch;      // forward_scratch numbers for each part
  int64_t scratch_size;
};

template <class Types>
struct CpuBackwardParams {
  BackwardParams<Types> layer;
  Gemm recurrent_gemm;             // dot or packed_ahead
  bool last_gemm;                  // take that of the first step too; else the caller does
  Weight<Types> weight_hh;         // [4H, P]
  Weight<Types> weight_hr;         // [P, H], packed
  typename Types::Operand* stage;  // stage_size numbers for each part, or null
  int64_t stage_size;
};

template <class Types>
struct Functions {
  int64_t (*panels)(const Packing<Types>&);      // how many
  int64_t (*panel_size)(const Packing<Types>&);  // numbers in each
  // panel: one of them; to: where the first panel of all begins
  void (*pack)(const Packing<Types>&, int64_t panel, typename Types::Operand* to);
  int64_t (*forward_scratch)(const CpuForwardParams<Types>&, int64_t sequences, int64_t units);
  int64_t (*backward_stage)(const CpuBackwardParams<Types>&);
  // A part's sequences through all steps.
  void (*forward)(const CpuForwardParams<Types>&, const Part&);
  void (*backward)(const CpuBackwardParams<Types>&, const Part&);
};

struct Kernels {
  const char* name;
  int64_t unit_block;  // hidden units of a float32 plain panel
  Functions<Float> of_float;
  Functions<Double> of_double;
  Functions<HalfFloat> of_half;
  Functions<BFloat16Float> of_bfloat16;
  const Functions<BFloat16Operands>* narrow;  // to be preferred to of_bfloat16, or null
};

// The best table for this processor, or a lower one that FUSED_LSTM_CPU_ISA names. Throws
// std::runtime_error if that names none that this processor has.
const Kernels& kernels();

const Kernels& kernels_portable();
#ifdef __x86_64__
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif
#ifdef FUSED_LSTM_HAS_AMX
const Kernels& kernels_amx();
#endif

}  // namespace cpu
}  // namespace fused_lstm
