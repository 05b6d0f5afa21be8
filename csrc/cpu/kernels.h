// The CPU kernels: one table of functions for each instruction set. Free of torch.
#pragma once

#include "core/sequence.h"
#include "cpu/barrier.h"
#include "cpu/compiler.h"
#include "plan/cpu_machine.h"
#include "plan/kernel.h"

namespace fused_lstm::cpu {

template <class Operand, class State = Operand>
struct Frozen : Types<float, float, Operand, State> {};

using Float = Types<float, float, float>;
using Double = Types<double, double, double>;
using HalfFloat = Types<Half, float, float>;
using BFloat16Float = Types<BFloat16, float, float>;
using BFloat16Operands = Types<BFloat16, float, BFloat16>;
// Of frozen layers: float32 outside, weights in panels and in no other form.
using FrozenFloat = Frozen<float>;
using FrozenBFloat16 = Frozen<BFloat16>;
using FrozenInt8 = Frozen<Int8, float>;

// What a GEMM in AMX tiles reads at once of its left factor (amx.inl).
constexpr int kAmxRows = 16;
constexpr int kAmxDepth = 32;  // of bfloat16

// A weight matrix: as nn.LSTM stores it, and, where it is packed ahead, in panels (pack.inl).
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

// What one thread computes: some sequences, and some of the hidden units of all of them.
struct Part {
  int64_t batch_begin, batch_end;
  int64_t unit_begin, unit_end;  // multiples of a panel's units, except H
  Barrier* barrier;              // of the parts that share these sequences, or null
  int64_t participants;          // of the barrier, on whose behalf this part arrives
  int64_t index;                 // of its scratch memory
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
  int64_t chunk;                           // steps in one input GEMM
  typename Types::State* hidden[2];  // [B + 15, hidden_stride] a step reads one, writes the other
  typename Types::Accum* scratch;    // [parts, scratch_size]
  int64_t scratch_size;              // forward_scratch_size
};

template <class Types>
struct CpuBackwardParams {
  BackwardParams<Types> layer;
  Gemm recurrent_gemm;             // dot, packed_ahead or unpacked
  Weight<Types> weight_hh;         // [4H, P]
  Weight<Types> weight_hr;         // [P, H], packed
  typename Types::Operand* stage;  // [parts, stage_size]
  int64_t stage_size;
};

// dL/dx [N, D] (+)= grad_preactivations [N, 4H] W_ih [4H, D].
template <class Types>
struct InputGradientParams {
  Gemm gemm;                                           // dot, packed_ahead or unpacked
  int64_t depth;                                       // 4H
  int64_t input_size;                                  // D
  const typename Types::Operand* grad_preactivations;  // [N, depth]
  Weight<Types> weight_ih;                             // [4H, D]
  typename Types::Accum* grad_input;                   // [N, D]
  bool accumulate;
};

// A matrix [N, columns] whose rows from `split` on lie in `rest`: h_0, then the output, say.
template <class Types>
struct RightFactor {
  using Operand = typename Types::Operand;

  const Operand* first;
  const Operand* rest;
  int64_t split, first_stride, rest_stride;  // elements
  int64_t columns;
  typename Types::Accum* grad;  // [M, columns] out: grad^T times this matrix

  FUSED_LSTM_INLINE const Operand* row(int64_t n) const {
    return n < split ? first + n * first_stride : rest + (n - split) * rest_stride;
  }
};

// The gradients of weights [M, columns] from `grad` [N, M], that of the weights' outputs.
template <class Types>
struct WeightGradientParams {
  int64_t block_rows;                   // of N that are packed at once; even
  int64_t rows;                         // N
  const typename Types::Operand* grad;  // [N, M]
  int64_t grad_columns;                 // M
  RightFactor<Types> right[2];
  int factors;                       // of `right`
  typename Types::Accum* grad_bias;  // [M] out: the sum of grad's rows, or null
};

template <class Types>
struct GradientFunctions {
  // Rows begin .. end of dL/dx
  void (*input)(const InputGradientParams<Types>&, int64_t begin, int64_t end,
                typename Types::Operand* stage);
  int64_t (*weight_scratch_size)(const WeightGradientParams<Types>&);  // elements
  // Rows begin .. end of M
  void (*weight)(const WeightGradientParams<Types>&, int64_t begin, int64_t end,
                 typename Types::Operand* scratch);
};

template <class Types>
struct Functions {
  int64_t (*panel_count)(const Packing<Types>&);
  int64_t (*panel_size)(const Packing<Types>&);  // elements
  // Packs one panel; to: [panel_count, panel_size]
  void (*pack)(const Packing<Types>&, int64_t panel, typename Types::Operand* to);
  // Elements, for a part of so many sequences and hidden units
  int64_t (*forward_scratch_size)(const CpuForwardParams<Types>&, int64_t sequences, int64_t units);
  // Elements, for the GEMM with a plain weight of so many rows
  int64_t (*stage_size)(int64_t depth);
  // A part through all steps
  void (*forward)(const CpuForwardParams<Types>&, const Part&);
  void (*backward)(const CpuBackwardParams<Types>&, const Part&);
  GradientFunctions<Types> gradients;  // null in AMX tiles
};

// Loops that are timed once, for the plan (probe.inl). Their results mean nothing.
struct Probes {
  int64_t lanes;                     // of float32
  int64_t tile_rows;                 // of a tile of four vectors
  int64_t sums;                      // that `multiply` adds to at each of its times
  float (*multiply)(int64_t times);  // an FMA
  float (*divide)(int64_t times);    // four vectors
  float (*read)(const float* from, int64_t elements);
};

// A weight [rows, columns] of a frozen layer: elements as `Operand` has them, or float32, which is
// rounded to it, in int8 with the scale max |w| / 127 of each row.
struct FrozenMatrix {
  const void* data;     // [rows, columns]
  const float* scales;  // [rows] of Int8 elements, else null
  bool is_float;        // `data` is float32
  int64_t rows, columns;
  PanelLayout layout;  // gates or plain_transposed
};

// How a frozen layer's panels are laid out. Panels of equal layouts are the same bytes.
struct FrozenLayout {
  int32_t lanes;       // of each of a panel's four vectors
  int32_t depth_step;  // elements of depth side by side
  int32_t depth_unit;  // depth is padded to a multiple
  int32_t offset;      // that is added to quantised activations
};

template <class Types>
struct FrozenFunctions {
  FrozenLayout layout;
  float (*multiply)(int64_t times);  // for a probe, of operands
  int64_t operations;                // of each time; a multiplication and an addition are two
  void (*pack)(const FrozenMatrix&, void* panels);
  // As in Functions
  int64_t (*forward_scratch_size)(const CpuForwardParams<Types>&, int64_t sequences, int64_t units);
  void (*forward)(const CpuForwardParams<Types>&, const Part&);
};

// The functions of frozen layers, each by the best instructions that the processor has for it.
struct FrozenKernels {
  FrozenFunctions<FrozenFloat> of_float;
  FrozenFunctions<FrozenBFloat16> of_bfloat16;
  FrozenFunctions<FrozenInt8> of_int8;
  Probes probes;
};

// The functions for bfloat16 operands, and what they multiply in a nanosecond.
struct Bf16Operands {
  Functions<BFloat16Operands> functions;
  float (*multiply)(int64_t times);  // for a probe
  int64_t flops;                     // of each time
};

struct Kernels {
  const char* name;
  int64_t unit_block;  // hidden units of a float32 plain panel
  Functions<Float> of_float;
  Functions<Double> of_double;
  Functions<HalfFloat> of_half;
  Functions<BFloat16Float> of_bfloat16;
  Probes probes;
  const Bf16Operands* bf16_operands;  // replaces of_bfloat16 unless null
};

// The table of instruction_set(), whose errors it throws.
const Kernels& kernels();
// Those of frozen layers, of the same instruction set.
const FrozenKernels& frozen_kernels();

// Nanoseconds of so many times of a probe, the quickest of a few runs.
double measure_ns(float (*probe)(int64_t times), int64_t times);
// The machine as a plan sees it, measured at the first call, in about a millisecond; the figures of
// threads are left to the caller, who has them.
const Machine& measured_machine();
// Whether gates divide: set by measured_machine(), or, where there is no plan of GEMMs, by
// settle_division(), at its first call.
extern bool divides;
void settle_division();
// The figures that it is chosen by: vector_bytes, fma_gflops and division_ns.
void measure_arithmetic(const Probes& probes, Machine& machine);
// Replaces the figures that FUSED_LSTM_MACHINE gives: it names a file or is what that would hold
// (plan/cpu_machine.h). Throws std::runtime_error if it is neither.
void apply_given_figures(Machine& machine);

const Kernels& kernels_portable();
const FrozenKernels& frozen_portable();
#ifdef __x86_64__
const Kernels& kernels_avx2();
const FrozenKernels& frozen_avx2();
const Kernels& kernels_avx512();
const FrozenKernels& frozen_avx512();
#endif
// These complete the tables above: dotprod the portable one, avxvnni that of AVX2, the others that
// of AVX-512.
#ifdef FUSED_LSTM_HAS_DOTPROD
const FrozenFunctions<FrozenInt8>& frozen_int8_dotprod();
#endif
#ifdef FUSED_LSTM_HAS_AVXVNNI
const FrozenFunctions<FrozenInt8>& frozen_int8_avxvnni();
#endif
#ifdef FUSED_LSTM_HAS_AVX512VNNI
const FrozenFunctions<FrozenInt8>& frozen_int8_avx512vnni();
#endif
#ifdef FUSED_LSTM_HAS_AVX512BF16
const Bf16Operands& bf16_operands_avx512bf16();
const FrozenFunctions<FrozenBFloat16>& frozen_bfloat16_avx512bf16();
#endif
#ifdef FUSED_LSTM_HAS_AMX
const Bf16Operands& bf16_operands_amx();
const FrozenFunctions<FrozenBFloat16>& frozen_bfloat16_amx();
const FrozenFunctions<FrozenInt8>& frozen_int8_amx();
#endif

}  // namespace fused_lstm::cpu
