// One direction of one layer over a batch of sequences: the parameters of the kernels, and what one
// step computes for one hidden unit of one sequence. Free of torch.
//
//   Step: one time t for all sequences that have it. Steps are processed by index 0 .. T - 1; t is
//     index or, in the reverse direction, T - 1 - index. `previous` and `next` mean in that order.
//   Valid step: t < lengths[b]. At other steps the output is zero and the state stays as it is.
//   Episode boundary: reset[t, b], at a valid step, puts one between t - 1 and t. The forward
//     direction starts an episode at t, the reverse direction at t - 1: from h_0 and c_0 or from
//     zero.
//
//     t, where reset[3, b] and lengths[b] == 5     0    1    2     3    4     5    6
//       forward                        h_0, c_0 -> o -> o -> o  |  o -> o
//       reverse                                    o <- o <- o  |  o <- o <- h_0, c_0
//
// V is a scalar (CUDA: one hidden unit) or a SIMD vector (`count` units from j on).
#pragma once

#include "core/cell.h"

namespace fused_lstm {

// How the N rows of a batch are ordered: by t, then b. N = T * B, or less for a packed sequence.
struct Steps {
  int64_t length;          // T
  int64_t batch;           // B
  const int64_t* offsets;  // host [T + 1]: first row of each step of a packed sequence, or null
  bool reverse;            // direction
};

// Where sequences end and episodes begin.
struct Boundaries {
  const int64_t* lengths;  // [B], or null: all of length T
  const bool* reset;       // [T, B]: an episode boundary before this step, or null: none
  bool reset_to_initial;   // episodes start from h_0 and c_0, not from zero
};

// A cell state [B, H] of the caller: in the layer's Storage or in Accum, the other pointer null.
// Both are null for a c_0 that is absent: zero.
template <class Storage, class Accum>
struct CellState {
  Storage* storage;
  Accum* accum;
};

// P is proj_size, or H without a projection. A row of 4H is [4, H], gates i f g o. What only one
// device has (weights, GEMM scratch, the current hidden state) is in that device's parameters.
template <class Types>
struct ForwardParams {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  using State = typename Types::State;

  Steps steps;
  Boundaries boundaries;
  int64_t hidden_size;      // H
  int64_t projection_size;  // P
  bool projected;           // P < H
  int64_t hidden_stride;    // P or more: the device's hidden state is [B, hidden_stride]
  const Storage* h_0;       // [B, P], or null: zero
  CellState<const Storage, const Accum> c_0;

  Storage* gates;   // [N, 4H] activations, or null
  Accum* cells;     // [N, H], or null
  Storage* output;  // [N, output_stride], this direction's P columns
  int64_t output_stride;
  Storage* h_n;                   // [B, P] after each sequence's last valid step
  CellState<Storage, Accum> c_n;  // [B, H] likewise
  Accum* cell_state;              // [B, H] scratch, in: c_0
  State* unprojected;             // [B, H] scratch: o tanh(c), with a projection
  Accum* projection;              // [B, P] scratch: unprojected W_hr^T
};

template <class Types>
struct BackwardParams {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  using Operand = typename Types::Operand;

  Steps steps;
  Boundaries boundaries;
  int64_t hidden_size;      // H
  int64_t projection_size;  // P
  bool projected;           // P < H
  const Storage* h_0;       // [B, P], or null: zero
  CellState<const Storage, const Accum> c_0;

  const Storage* gates;   // [N, 4H]
  const Accum* cells;     // [N, H]
  const Storage* output;  // [N, output_stride]; null where T == 1
  int64_t output_stride;
  const Storage* grad_output;  // [N, output_stride], or null
  const Accum* grad_cells;     // [N, H], or null
  const Storage* grad_gates;   // [N, 4H], or null

  // CUDA's persistent kernels take null for a gradient of zero, and then leave none.
  Accum* grad_hidden;            // [B, P] in: gradient of h_n; out: of h_0
  Accum* grad_cell;              // [B, H] in: gradient of c_n; out: of c_0
  Accum* grad_h_0;               // [B, P] accumulated where episodes start from h_0, or null
  Accum* grad_c_0;               // [B, H] likewise, from c_0
  Operand* grad_preactivations;  // [N, 4H] out
  Operand* h_prev;               // [N, P] out: the hidden state that enters each step, or null
  Operand* grad_projection;      // [N, P] out: gradient of h, with a projection
  Operand* unprojected;          // [N, H] out: o tanh(c), with a projection
  Accum* grad_unprojected;       // [B, H] scratch: gradient of o tanh(c), with a projection
};

struct Step {
  int64_t t;
  int64_t offset;    // its first row
  int64_t rows;      // sequences that have it: the first ones of the batch
  int64_t previous;  // t of the previous step; -1, with 0 rows, before the first
  int64_t previous_offset;
  int64_t previous_rows;
  int64_t next;  // t of the next step; -1, with 0 rows, after the last
  int64_t next_rows;
};

namespace {

FUSED_LSTM_INLINE Step make_step(const Steps& steps, int64_t index) {
  const auto time = [&](int64_t i) {
    return i < 0 || i >= steps.length ? -1 : steps.reverse ? steps.length - 1 - i : i;
  };
  const auto offset = [&](int64_t t) {
    return t < 0 ? 0 : steps.offsets ? steps.offsets[t] : t * steps.batch;
  };
  const auto rows = [&](int64_t t) {
    return t < 0 ? 0 : steps.offsets ? steps.offsets[t + 1] - steps.offsets[t] : steps.batch;
  };
  const int64_t t = time(index), previous = time(index - 1), next = time(index + 1);
  return {t, offset(t), rows(t), previous, offset(previous), rows(previous), next, rows(next)};
}

FUSED_LSTM_INLINE bool is_valid(const Boundaries& boundaries, int64_t t, int64_t b) {
  return !boundaries.lengths || t < boundaries.lengths[b];
}

// False for t == -1.
FUSED_LSTM_INLINE bool starts_episode(const Boundaries& boundaries, const Steps& steps, int64_t t,
                                      int64_t b) {
  if (!boundaries.reset || t < 0) return false;
  const int64_t boundary = steps.reverse ? t + 1 : t;
  return boundary < steps.length && is_valid(boundaries, boundary, b) &&
         boundaries.reset[boundary * steps.batch + b];
}

// The state that enters step t of sequence b: zero or `initial` at the start of an episode, else
// previous(). Both are functions without arguments.
template <class V, class Previous, class Initial>
FUSED_LSTM_INLINE V entering_state(const Boundaries& boundaries, const Steps& steps, int64_t t,
                                   int64_t b, const Previous& previous, const Initial& initial) {
  if (!starts_episode(boundaries, steps, t, b)) return previous();
  return boundaries.reset_to_initial ? initial() : V{};
}

// The gradient that leaves the first step of an episode: it ends here, in that of the initial
// state, or nowhere if grad_initial is null.
template <class V, class Accum>
FUSED_LSTM_INLINE V end_gradient(V grad, Accum* grad_initial, int64_t index, int count) {
  if (grad_initial) {
    store<V>(grad_initial + index, load<V>(grad_initial + index, count) + grad, count);
  }
  return V{};
}

template <class V, class Storage, class Accum>
FUSED_LSTM_INLINE V load_cell(const CellState<Storage, Accum>& cell, int64_t index, int count) {
  if (cell.accum) return load<V>(cell.accum + index, count);
  return cell.storage ? load<V>(cell.storage + index, count) : V{};
}
template <class V, class Storage, class Accum>
FUSED_LSTM_INLINE void store_cell(const CellState<Storage, Accum>& cell, int64_t index, V value,
                                  int count) {
  if (cell.accum) {
    store<V>(cell.accum + index, value, count);
  } else {
    store<V>(cell.storage + index, value, count);
  }
}

template <class V, class T>
FUSED_LSTM_INLINE Gates<V> load_gates(const T* row, int64_t hidden_size, int64_t j, int count) {
  return {load<V>(row + j, count), load<V>(row + hidden_size + j, count),
          load<V>(row + 2 * hidden_size + j, count), load<V>(row + 3 * hidden_size + j, count)};
}
template <class V, class T>
FUSED_LSTM_INLINE void store_gates(T* row, int64_t hidden_size, int64_t j, const Gates<V>& gate,
                                   int count) {
  store<V>(row + j, gate.i, count);
  store<V>(row + hidden_size + j, gate.f, count);
  store<V>(row + 2 * hidden_size + j, gate.g, count);
  store<V>(row + 3 * hidden_size + j, gate.o, count);
}
template <class V>
FUSED_LSTM_INLINE Gates<V> add(const Gates<V>& a, const Gates<V>& b) {
  return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o};
}

// h_0 of a forward or backward pass, from element `index` of [B, P] on.
template <class V, class Params>
FUSED_LSTM_INLINE V load_h_0(const Params& p, int64_t index, int count) {
  return p.h_0 ? load<V>(p.h_0 + index, count) : V{};
}

// The hidden state that enters the first step.
template <class V, class Types>
FUSED_LSTM_INLINE V first_hidden(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                 int64_t j, int count) {
  const auto initial = [&] { return load_h_0<V>(p, b * p.projection_size + j, count); };
  return entering_state<V>(p.boundaries, p.steps, step.t, b, initial, initial);
}

// Stores h after `step`: in the output, in h_n, and in `next`, the state that enters the next step.
// `hidden`: the state that entered this step, which may be the same memory as `next`.
template <class V, class Types>
FUSED_LSTM_INLINE void emit_hidden(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                   int64_t j, V h, const typename Types::State* hidden,
                                   typename Types::State* next, int count) {
  const int64_t state = b * p.projection_size + j;
  typename Types::Storage* output = p.output + (step.offset + b) * p.output_stride + j;
  V h_next;
  if (is_valid(p.boundaries, step.t, b)) {
    store<V>(output, h, count);
    // Rounded to Storage: the next GEMM reads what the caller sees.
    h_next = entering_state<V>(
        p.boundaries, p.steps, step.next, b, [&] { return load<V>(output, count); },
        [&] { return load_h_0<V>(p, state, count); });
  } else {
    store<V>(output, V{}, count);
    h_next = load<V>(hidden, count);
  }
  store<V>(next, h_next, count);
  if (b >= step.next_rows) store<V>(p.h_n + state, h_next, count);
}

// What update_hidden needs of update_cell.
template <class V>
struct Updated {
  V cell, output_gate;
};

// Gates and cell state after `step`, from the preactivations. cell_state: of these units, updated
// in place.
template <class V, class Types>
FUSED_LSTM_INLINE Updated<V> update_cell(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                         int64_t j, const Gates<V>& preactivations,
                                         typename Types::Accum* cell_state, int count) {
  const int64_t H = p.hidden_size;
  const int64_t row = step.offset + b;
  const int64_t state = b * H + j;

  V cell = load<V>(cell_state, count);
  Gates<V> gate = {V{}, V{}, V{}, V{}};
  if (is_valid(p.boundaries, step.t, b)) {
    const V c_prev = entering_state<V>(
        p.boundaries, p.steps, step.t, b, [&] { return cell; },
        [&] { return load_cell<V>(p.c_0, state, count); });
    gate = activate(preactivations);
    cell = next_cell(gate, c_prev);
    store<V>(cell_state, cell, count);
  }
  if (p.gates) store_gates<V>(p.gates + row * 4 * H, H, j, gate, count);
  if (p.cells) store<V>(p.cells + row * H + j, cell, count);
  if (b >= step.next_rows) store_cell<V>(p.c_n, state, cell, count);
  return {cell, gate.o};
}

// The hidden state after update_cell; with a projection, o tanh(c), which is to be projected.
template <class V, class Types>
FUSED_LSTM_INLINE void update_hidden(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                     int64_t j, const Updated<V>& updated,
                                     const typename Types::State* hidden,
                                     typename Types::State* next, int count) {
  const V h = next_hidden(updated.output_gate, updated.cell);
  if (p.projected) {
    store<V>(p.unprojected + b * p.hidden_size + j, h, count);
  } else {
    emit_hidden<V>(p, step, b, j, h, hidden, next, count);
  }
}

// Whether sequence b has a valid step before `step`; else the initial state enters `step`.
FUSED_LSTM_INLINE bool has_previous(const Boundaries& boundaries, const Step& step, int64_t b) {
  return b < step.previous_rows && is_valid(boundaries, step.previous, b);
}

// Stores the hidden state that enters `step`, for the gradient of the recurrent weight.
template <class V, class Types>
FUSED_LSTM_INLINE void save_h_prev(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                   int64_t j, int count) {
  if (!p.h_prev) return;
  V h = {};
  if (is_valid(p.boundaries, step.t, b)) {
    const auto initial = [&] { return load_h_0<V>(p, b * p.projection_size + j, count); };
    const auto previous = [&] {
      if (!has_previous(p.boundaries, step, b)) return initial();
      return load<V>(p.output + (step.previous_offset + b) * p.output_stride + j, count);
    };
    h = entering_state<V>(p.boundaries, p.steps, step.t, b, previous, initial);
  }
  store<V>(p.h_prev + (step.offset + b) * p.projection_size + j, h, count);
}

template <class V, class Types>
FUSED_LSTM_INLINE V load_grad_output(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                     int64_t j, int count) {
  if (!p.grad_output) return V{};
  return load<V>(p.grad_output + (step.offset + b) * p.output_stride + j, count);
}

// dL/dh after `step`: grad_output plus grad_hidden, the contribution of the next step. Resets
// grad_hidden to zero, because this step's recurrent GEMM accumulates into it.
template <class V, class Types>
FUSED_LSTM_INLINE V collect_grad_hidden(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                        int64_t j, V grad_output,
                                        typename Types::Accum* grad_hidden, int count) {
  if (!is_valid(p.boundaries, step.t, b)) return V{};
  V grad = load<V>(grad_hidden, count);
  store<V>(grad_hidden, V{}, count);
  if (starts_episode(p.boundaries, p.steps, step.next, b)) {
    grad = end_gradient<V>(grad, p.grad_h_0, b * p.projection_size + j, count);
  }
  return grad + grad_output;
}

// What backward_units reads that no other step's backward computes.
template <class V>
struct Saved {
  Gates<V> gate, grad_gate;
  V c_prev, c;  // before and after the step
  V grad_c;     // of c, from the caller
};

template <class V, class Types>
FUSED_LSTM_INLINE Saved<V> load_saved(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                      int64_t j, int count) {
  const int64_t H = p.hidden_size;
  const int64_t row = step.offset + b;
  Saved<V> saved = {};
  if (p.grad_cells) saved.grad_c = load<V>(p.grad_cells + row * H + j, count);
  if (!is_valid(p.boundaries, step.t, b)) return saved;
  const auto initial = [&] { return load_cell<V>(p.c_0, b * H + j, count); };
  const auto previous = [&] {
    if (!has_previous(p.boundaries, step, b)) return initial();
    return load<V>(p.cells + (step.previous_offset + b) * H + j, count);
  };
  saved.c_prev = entering_state<V>(p.boundaries, p.steps, step.t, b, previous, initial);
  saved.c = load<V>(p.cells + row * H + j, count);
  saved.gate = load_gates<V>(p.gates + row * 4 * H, H, j, count);
  if (p.grad_gates) saved.grad_gate = load_gates<V>(p.grad_gates + row * 4 * H, H, j, count);
  return saved;
}

// Backward through `step`, from the gradient of o tanh(c). grad_cell: of c from the next step;
// updated in place to that of c_prev. Returns the gradients of the preactivations.
template <class V, class Types>
FUSED_LSTM_INLINE Gates<V> backward_units(const BackwardParams<Types>& p, const Step& step,
                                          int64_t b, int64_t j, V grad_hidden,
                                          const Saved<V>& saved, typename Types::Accum* grad_cell,
                                          int count) {
  const int64_t H = p.hidden_size;
  const int64_t row = step.offset + b;
  const V grad_c = load<V>(grad_cell, count) + saved.grad_c;
  Gates<V> grad_preactivations = {V{}, V{}, V{}, V{}};
  V grad_c_prev = grad_c, unprojected = {};
  if (is_valid(p.boundaries, step.t, b)) {
    const CellGradient<V> grad =
        cell_backward(saved.gate, saved.c_prev, saved.c, grad_hidden, grad_c, saved.grad_gate);
    grad_preactivations = grad.preactivations;
    grad_c_prev = grad.cell;
    if (starts_episode(p.boundaries, p.steps, step.t, b)) {
      grad_c_prev = end_gradient<V>(grad_c_prev, p.grad_c_0, b * H + j, count);
    }
    if (p.projected) unprojected = next_hidden(saved.gate.o, saved.c);
  }
  store_gates<V>(p.grad_preactivations + row * 4 * H, H, j, grad_preactivations, count);
  if (p.projected) store<V>(p.unprojected + row * H + j, unprojected, count);
  store<V>(grad_cell, grad_c_prev, count);
  return grad_preactivations;
}

}  // namespace
}  // namespace fused_lstm
