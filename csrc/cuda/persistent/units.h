// What a thread of a persistent kernel knows of a hidden unit of one sequence: where its memory is,
// its state, and a step of it forward and backward. Free of torch.
//
// What a step reads of memory is loaded a step before, as it is stored (`Saved`); what it writes is
// stored after the step's operand has been sent, for no other thread waits for it.
#pragma once

#include "cuda/fast_math.h"
#include "cuda/persistent/mma.h"
#include "cuda/persistent/rows.h"

namespace fused_lstm {
namespace cuda {
namespace {

// The gates' preactivations that the recurrent GEMM is added to, and the biases.
__device__ __forceinline__ Gates<FastFloat> as_gates(const float (&x)[4]) {
  return {x[0], x[1], x[2], x[3]};
}

template <class Storage>
__device__ __forceinline__ void add_bias(float (&sums)[4], const Storage* bias, int H, int j) {
  if (!bias) return;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) sums[gate] += widened(bias[gate * H + j]);
}

template <class LayerParams>
__device__ __forceinline__ float load_initial_cell(const LayerParams& p, int64_t at) {
  if (p.c_0.accum) return p.c_0.accum[at];
  return p.c_0.storage ? widened(p.c_0.storage[at]) : 0.0f;
}

template <class Types>
struct ForwardUnit {
  using Storage = typename Types::Storage;

  int j, b;
  bool present;  // a unit and sequence of the layer
  int length;    // valid steps of the sequence
  float cell;
  Storage hidden;  // after the last valid step

  __device__ __forceinline__ void start(const ForwardParams<Types>& p, int unit, int sequence,
                                        bool in_slice) {
    j = unit;
    b = sequence;
    present = in_slice && unit < p.hidden_size && sequence < p.steps.batch;
    length = valid_length(p.boundaries, p.steps, sequence);
    hidden = present ? initial_hidden(p) : Storage{};
    cell = present ? initial_cell(p) : 0.0f;
  }
  __device__ __forceinline__ Storage initial_hidden(const ForwardParams<Types>& p) const {
    return p.h_0 ? p.h_0[offset_of(b, static_cast<int>(p.hidden_size)) + j] : Storage{};
  }
  __device__ __forceinline__ float initial_cell(const ForwardParams<Types>& p) const {
    return load_initial_cell(p, offset_of(b, static_cast<int>(p.hidden_size)) + j);
  }
  __device__ __forceinline__ bool exists(const Rows& rows) const { return present && b < rows.count; }

  // One step: `sums` are its preactivations, `episode` whether an episode starts at it. Returns the
  // gates, which are zero at a step that is not valid.
  __device__ __forceinline__ Gates<FastFloat> step(const ForwardParams<Types>& p, const Rows& rows,
                                                   int t, const float (&sums)[4], bool episode) {
    if (episode) cell = p.boundaries.reset_to_initial && present ? initial_cell(p) : 0.0f;
    const bool valid = b < rows.count && t < length;
    Gates<FastFloat> gate = activate(as_gates(sums));
    const FastFloat next = next_cell<FastFloat>(gate, cell);
    const FastFloat h = next_hidden<FastFloat>(gate.o, next);
    cell = valid ? next.value : cell;
    hidden = valid ? rounded<Storage>(h.value) : hidden;
    if (!valid) gate = {0.0f, 0.0f, 0.0f, 0.0f};
    return gate;
  }

  // Stores what the caller sees of the step.
  __device__ __forceinline__ void emit(const ForwardParams<Types>& p, const Rows& rows, int t,
                                       const Gates<FastFloat>& gate) const {
    if (!exists(rows)) return;
    const int row = rows.first + b, H = static_cast<int>(p.hidden_size);
    p.output[offset_of(row, static_cast<int>(p.output_stride)) + j] =
        t < length ? hidden : Storage{};
    if (p.gates) {
      Storage* const to = p.gates + offset_of(row, 4 * H) + j;
      to[0] = rounded<Storage>(gate.i.value);
      to[H] = rounded<Storage>(gate.f.value);
      to[2 * H] = rounded<Storage>(gate.g.value);
      to[3 * H] = rounded<Storage>(gate.o.value);
    }
    if (p.cells) p.cells[offset_of(row, H) + j] = cell;
  }

  __device__ __forceinline__ void finish(const ForwardParams<Types>& p) const {
    if (!present) return;
    const int64_t at = offset_of(b, static_cast<int>(p.hidden_size)) + j;
    p.h_n[at] = hidden;
    store_cell<float>(p.c_n, at, cell, 1);
  }
};

// The preactivations of a step that were made ahead, raw: loaded a step before their use.
__device__ __forceinline__ void load_preactivations(const float* preactivations, int H, int row, int j,
                                                    bool exists,
                                                    float (&x)[4]) {
  if (!exists) return;
  const float* const from = preactivations + offset_of(row, 4 * H) + j;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) x[gate] = from[gate * H];
}

// Of backward.
template <class Types>
struct BackwardUnit {
  using Storage = typename Types::Storage;

  // What a step needs of memory.
  struct Saved {
    Storage gate[4], grad_gate[4], grad_output;
    float grad_cell;
    float previous_cell;
  };

  int j, b;
  bool present;
  int length;
  float initial_cell;            // c_0
  float grad_hidden, grad_cell;  // of the states after the step, from the steps after it
  float cell;                    // after the step, as stored
  bool ends;                     // an episode starts at the step after it

  __device__ __forceinline__ void start(const BackwardParams<Types>& p, const Rows& last, int unit,
                                        int sequence, bool in_slice) {
    const int H = static_cast<int>(p.hidden_size);
    j = unit;
    b = sequence;
    present = in_slice && unit < H && sequence < p.steps.batch;
    length = valid_length(p.boundaries, p.steps, sequence);
    initial_cell = grad_hidden = grad_cell = 0.0f;
    ends = false;
    if (present) {
      const int64_t at = offset_of(b, H) + j;
      initial_cell = load_initial_cell(p, at);
      grad_hidden = p.grad_hidden[at];
      grad_cell = p.grad_cell[at];
    }
    cell = initial_cell;
    if (present && b < last.count) cell = p.cells[offset_of(last.first + b, H) + j];
  }

  // Of the step with `rows`, which comes after that with `previous`.
  __device__ __forceinline__ Saved load(const BackwardParams<Types>& p, const Rows& rows,
                                        const Rows& previous) const {
    const int H = static_cast<int>(p.hidden_size);
    Saved saved = {};
    saved.previous_cell = initial_cell;
    if (present && b < previous.count) {
      saved.previous_cell = p.cells[offset_of(previous.first + b, H) + j];
    }
    if (!present || b >= rows.count) return saved;
    const int row = rows.first + b;
    const int64_t at = offset_of(row, 4 * H) + j;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) saved.gate[gate] = p.gates[at + gate * H];
    if (p.grad_output) {
      saved.grad_output = p.grad_output[offset_of(row, static_cast<int>(p.output_stride)) + j];
    }
    if (p.grad_cells) saved.grad_cell = p.grad_cells[offset_of(row, H) + j];
    if (p.grad_gates) {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) saved.grad_gate[gate] = p.grad_gates[at + gate * H];
    }
    return saved;
  }

  // One step backward; grad_hidden has the recurrent GEMM of the step after it. episode: whether one
  // starts at this step. Returns the gradients of the preactivations, zero at a step that is not
  // valid.
  __device__ __forceinline__ Gates<FastFloat> step(const BackwardParams<Types>& p, const Rows& rows,
                                                   int t, const Saved& saved, bool episode) {
    const bool valid = b < rows.count && t < length;
    if (ends && valid) end_gradient_at(p, p.grad_h_0, grad_hidden);
    const FastFloat grad_h = grad_hidden + widened(saved.grad_output);
    const FastFloat grad_c = grad_cell + saved.grad_cell;
    const FastFloat c_prev =
        episode ? (p.boundaries.reset_to_initial ? initial_cell : 0.0f) : saved.previous_cell;
    const auto gates = [](const Storage(&x)[4]) {
      return Gates<FastFloat>{widened(x[0]), widened(x[1]), widened(x[2]), widened(x[3])};
    };
    const CellGradient<FastFloat> grad = cell_backward<FastFloat>(
        gates(saved.gate), c_prev, cell, grad_h, grad_c, gates(saved.grad_gate));
    grad_hidden = valid ? 0.0f : grad_hidden;
    grad_cell = valid ? grad.cell.value : grad_c.value;
    cell = saved.previous_cell;
    ends = episode;
    if (episode) end_gradient_at(p, p.grad_c_0, grad_cell);
    if (valid) return grad.preactivations;
    return {0.0f, 0.0f, 0.0f, 0.0f};
  }

  // Stores the gradients of the preactivations, rounded.
  __device__ __forceinline__ void emit(const BackwardParams<Types>& p, const Rows& rows,
                                       const Storage (&grad)[4]) const {
    if (!present || b >= rows.count) return;
    const int H = static_cast<int>(p.hidden_size);
    Storage* const to = p.grad_preactivations + offset_of(rows.first + b, 4 * H) + j;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) to[gate * H] = grad[gate];
  }

  __device__ __forceinline__ void finish(const BackwardParams<Types>& p) const {
    if (!present) return;
    const int64_t at = offset_of(b, static_cast<int>(p.hidden_size)) + j;
    p.grad_hidden[at] = grad_hidden;
    p.grad_cell[at] = grad_cell;
  }

 private:
  // The gradient of the state that entered an episode: it is that of the initial state, or of zero.
  __device__ __forceinline__ void end_gradient_at(const BackwardParams<Types>& p, float* initial,
                                                  float& grad) const {
    if (initial && present) initial[offset_of(b, static_cast<int>(p.hidden_size)) + j] += grad;
    grad = 0.0f;
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
