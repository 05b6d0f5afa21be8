// What a thread of a persistent kernel knows of a hidden unit of one sequence: where its memory is,
// its state, and a step of it forward and backward. Free of torch.
//
// What a step reads of memory is loaded a step before, as it is stored; what it writes is stored
// after the step's operand has been sent, for no other thread waits for it.
#pragma once

#include "cuda/fast_math.h"
#include "cuda/persistent/mma.h"
#include "cuda/persistent/params.h"
#include "cuda/persistent/rows.h"

namespace fused_lstm {
namespace cuda {
namespace {

template <class LayerParams>
__device__ __forceinline__ float load_initial_cell(const LayerParams& p, int64_t at) {
  if (p.c_0.accum) return p.c_0.accum[at];
  return p.c_0.storage ? widened(p.c_0.storage[at]) : 0.0f;
}

// kPointers: whether to keep them in registers, rather than to compute them at each step.
template <class Types, bool kRagged, bool kPointers>
struct ForwardUnit {
  using Storage = typename Types::Storage;

  int j, b;
  bool present;  // a unit and sequence of the layer
  Episodes<kRagged> episodes;
  // Element [b, j] of the arrays below, in the rows that begin at 0, and bytes of a row of [.., H].
  const float* preactivations;  // [N, 4H], or null
  Storage* output;              // [N, output_stride]
  Storage* gates;               // [N, 4H], or null
  float* cells;                 // [N, H], or null
  int H, output_bytes;          // output_bytes: of a row of the output
  float bias[4], ahead[4];      // of the next step: its preactivations but for the recurrent GEMM
  float cell;
  Storage hidden;  // after the last valid step

  __device__ __forceinline__ void start(const PersistentForwardParams<Types>& params, int direction,
                                        const Timeline<kRagged>& timeline, int unit, int sequence,
                                        bool in_slice) {
    const ForwardParams<Types>& p = params.layer[direction];
    H = in_register(static_cast<int>(p.hidden_size));
    j = unit;
    b = sequence;
    present = in_slice && unit < H && sequence < timeline.batch;
    const int stride = static_cast<int>(p.output_stride);
    output_bytes = in_register(stride * static_cast<int>(sizeof(Storage)));
    output = element_of(p.output, stride);
    preactivations = element_of(params.preactivations[direction], 4 * H);
    gates = element_of(p.gates, 4 * H);
    cells = element_of(p.cells, H);
    episodes = Episodes<kRagged>(p.boundaries, timeline, sequence);
    cell = 0.0f;
    hidden = Storage{};
    const int64_t at = offset_of(b, H) + j;
    if (present) {
      if (p.h_0) hidden = p.h_0[at];
      cell = load_initial_cell(p, at);
    }
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      bias[gate] = ahead[gate] = 0.0f;
      if (unit >= H) continue;
      const int row = gate * H + unit;
      if (params.bias_ih[direction]) bias[gate] += widened(params.bias_ih[direction][row]);
      if (params.bias_hh[direction]) bias[gate] += widened(params.bias_hh[direction][row]);
    }
  }

  // Loads what was made ahead of the step's preactivations.
  __device__ __forceinline__ void load(const Rows& rows) {
    if (!present || (kRagged && b >= rows.count)) return;
    const float* const from = row_of(preactivations, rows.first, 16 * H);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) ahead[gate] = *row_of(from, gate, 4 * H);
  }

  // What the recurrent GEMM of the next step is added to.
  __device__ __forceinline__ float preactivation(int gate) const {
    return ahead[gate] + bias[gate];
  }

  // One step, from its preactivations. Returns the gates, zero at a step that is
  // not valid.
  __device__ __forceinline__ Gates<FastFloat> step(const ForwardParams<Types>& p, const Rows& rows,
                                                   int t, const float (&sums)[4]) {
    if (kRagged && episodes.starts()) {
      cell = p.boundaries.reset_to_initial && present
                 ? load_initial_cell(p, offset_of(b, static_cast<int>(p.hidden_size)) + j)
                 : 0.0f;
    }
    Gates<FastFloat> gate = activate(Gates<FastFloat>{sums[0], sums[1], sums[2], sums[3]});
    const FastFloat next = next_cell<FastFloat>(gate, cell);
    const Storage h = rounded<Storage>(next_hidden<FastFloat>(gate.o, next).value);
    if (episodes.valid(rows, b, t)) {
      cell = next.value;
      hidden = h;
    } else {
      gate = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    return gate;
  }

  // Stores what the caller sees of the step.
  __device__ __forceinline__ void emit(const Rows& rows, int t,
                                       const Gates<FastFloat>& gate) const {
    if (!present || (kRagged && b >= rows.count)) return;
    constexpr int bytes = sizeof(Storage);
    *row_of(output, rows.first, output_bytes) = episodes.valid(rows, b, t) ? hidden : Storage{};
    if (gates) {
      Storage* const to = row_of(gates, rows.first, 4 * bytes * H);
      *to = rounded<Storage>(gate.i.value);
      *row_of(to, 1, bytes * H) = rounded<Storage>(gate.f.value);
      *row_of(to, 2, bytes * H) = rounded<Storage>(gate.g.value);
      *row_of(to, 3, bytes * H) = rounded<Storage>(gate.o.value);
    }
    if (cells) *row_of(cells, rows.first, 4 * H) = cell;
  }

  __device__ __forceinline__ void finish(const ForwardParams<Types>& p) const {
    if (!present) return;
    const int64_t at = offset_of(b, static_cast<int>(p.hidden_size)) + j;
    p.h_n[at] = hidden;
    store_cell<float>(p.c_n, at, cell, 1);
  }

 private:
  template <class T>
  __device__ __forceinline__ T* element_of(T* array, int width) const {
    T* const element = array ? array + offset_of(b, width) + j : nullptr;
    if constexpr (kPointers) {
      return in_register(element);
    } else {
      return element;
    }
  }
};

template <class Types, bool kRagged>
struct BackwardUnit {
  using Storage = typename Types::Storage;

  int j, b;
  bool present;
  bool ends;  // an episode starts at the step after
  Episodes<kRagged> episodes;
  // As in ForwardUnit.
  const Storage* gates;          // [N, 4H]
  const float* cells;            // [N, H]
  const Storage* grad_outputs;   // [N, output_stride], or null
  const float* grad_cells;       // [N, H], or null
  const Storage* grad_gates;     // [N, 4H], or null
  Storage* grad_preactivations;  // [N, 4H]
  int H, output_bytes;           // output_bytes: of a row of grad_outputs
  float initial_cell;            // c_0
  float grad_hidden, grad_cell;  // of the states after the step, from the steps after it
  float cell;                    // after the step, as stored
  // Of the next step, as stored:
  Storage gate[4], grad_gate[4], grad_output;
  float grad_cell_output;  // the caller's gradient of the cell state
  float previous_cell;     // before the step

  __device__ __forceinline__ void start(const BackwardParams<Types>& p,
                                        const Timeline<kRagged>& timeline, const Rows& last,
                                        int unit, int sequence, bool in_slice) {
    H = in_register(static_cast<int>(p.hidden_size));
    j = unit;
    b = sequence;
    present = in_slice && unit < H && sequence < timeline.batch;
    const int stride = static_cast<int>(p.output_stride);
    output_bytes = in_register(stride * static_cast<int>(sizeof(Storage)));
    grad_outputs = element_of(p.grad_output, stride);
    gates = element_of(p.gates, 4 * H);
    cells = element_of(p.cells, H);
    grad_cells = element_of(p.grad_cells, H);
    grad_gates = element_of(p.grad_gates, 4 * H);
    grad_preactivations = element_of(p.grad_preactivations, 4 * H);
    episodes = Episodes<kRagged>(p.boundaries, timeline, sequence);
    ends = false;
    initial_cell = grad_hidden = grad_cell = grad_cell_output = previous_cell = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] = grad_gate[i] = Storage{};
    grad_output = Storage{};
    if (present) {
      const int64_t at = offset_of(b, H) + j;
      initial_cell = load_initial_cell(p, at);
      if (p.grad_hidden) grad_hidden = p.grad_hidden[at];
      if (p.grad_cell) grad_cell = p.grad_cell[at];
    }
    cell = initial_cell;
    if (present && b < last.count) cell = *row_of(cells, last.first, 4 * H);
  }

  // Loads what the step with `rows` reads; it comes after the one with `previous` in time's order,
  // if it has one.
  __device__ __forceinline__ void load(const Rows& rows, const Rows& previous, bool has_previous) {
    constexpr int bytes = sizeof(Storage);
    if (!present) return;
    previous_cell = initial_cell;
    if (has_previous && (!kRagged || b < previous.count)) {
      previous_cell = *row_of(cells, previous.first, 4 * H);
    }
    if (kRagged && b >= rows.count) return;
    const Storage* const from = row_of(gates, rows.first, 4 * bytes * H);
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] = *row_of(from, i, bytes * H);
    if (grad_outputs) grad_output = *row_of(grad_outputs, rows.first, output_bytes);
    if (grad_cells) grad_cell_output = *row_of(grad_cells, rows.first, 4 * H);
    if (grad_gates) {
      const Storage* const grads = row_of(grad_gates, rows.first, 4 * bytes * H);
#pragma unroll
      for (int i = 0; i < 4; ++i) grad_gate[i] = *row_of(grads, i, bytes * H);
    }
  }

  // One step backward, once grad_hidden has the recurrent GEMM of the step after it. Returns the
  // gradients of the preactivations, zero at a step that is not valid.
  __device__ __forceinline__ Gates<FastFloat> step(const BackwardParams<Types>& p, const Rows& rows,
                                                   int t) {
    const bool valid = episodes.valid(rows, b, t), episode = episodes.starts();
    if (kRagged && ends && valid) end_gradient_at(p, p.grad_h_0, grad_hidden);
    const bool exists = !kRagged || b < rows.count;
    const FastFloat grad_h = grad_hidden + widened(grad_output);
    const FastFloat grad_c = grad_cell + (exists ? grad_cell_output : 0.0f);
    const FastFloat c_prev =
        episode ? (p.boundaries.reset_to_initial ? initial_cell : 0.0f) : previous_cell;
    const auto widen = [](const Storage(&x)[4]) {
      return Gates<FastFloat>{widened(x[0]), widened(x[1]), widened(x[2]), widened(x[3])};
    };
    const CellGradient<FastFloat> grad =
        cell_backward<FastFloat>(widen(gate), c_prev, cell, grad_h, grad_c, widen(grad_gate));
    cell = previous_cell;
    if (!kRagged) {
      grad_hidden = 0.0f;
      grad_cell = grad.cell.value;
      return grad.preactivations;
    }
    grad_hidden = valid ? 0.0f : grad_hidden;
    grad_cell = valid ? grad.cell.value : grad_c.value;
    ends = episode;
    if (episode) end_gradient_at(p, p.grad_c_0, grad_cell);
    if (valid) return grad.preactivations;
    return {0.0f, 0.0f, 0.0f, 0.0f};
  }

  // Stores the gradients of the preactivations, rounded.
  __device__ __forceinline__ void emit(const Rows& rows, const Storage (&grad)[4]) const {
    if (!present || (kRagged && b >= rows.count)) return;
    constexpr int bytes = sizeof(Storage);
    Storage* const to = row_of(grad_preactivations, rows.first, 4 * bytes * H);
#pragma unroll
    for (int i = 0; i < 4; ++i) *row_of(to, i, bytes * H) = grad[i];
  }

  __device__ __forceinline__ void finish(const BackwardParams<Types>& p) const {
    if (!present) return;
    const int64_t at = offset_of(b, static_cast<int>(p.hidden_size)) + j;
    if (p.grad_hidden) p.grad_hidden[at] = grad_hidden;
    if (p.grad_cell) p.grad_cell[at] = grad_cell;
  }

 private:
  template <class T>
  __device__ __forceinline__ T* element_of(T* array, int width) const {
    return in_register(array ? array + offset_of(b, width) + j : nullptr);
  }
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
