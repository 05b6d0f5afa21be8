// One direction of one layer over all its time steps: the parameters of the kernels, the order of
// the steps, and what a step does to one hidden unit of one sequence. Free of torch.
#pragma once

#include "core/cell.h"

namespace fused_lstm {

// How the rows of a sequence lie in time. N = T * B rows, or fewer for a packed sequence.
struct Steps {
  int64_t length;          // T
  int64_t batch;           // B
  const int64_t* offsets;  // host [T + 1]: first row of each step of a packed sequence, or null
  bool reverse;            // from the last step to the first
};

// Where sequences end and begin inside the batch.
struct Boundaries {
  const int64_t* lengths;  // [B], or null: all of length T
  const bool* reset;       // [T, B]: a new episode starts at this step, or null
  bool reset_to_initial;   // it starts from h_0 and c_0, not from zero
};

// A cell state that the caller gives or gets, [B, H]: in the layer's type of storage or, if the
// caller has it wider, in Accum. The other pointer is null.
template <class Storage, class Accum>
struct CellState {
  Storage* narrow;
  Accum* wide;
};

// P is the width of the hidden state: proj_size, or H where there is no projection.
// Gates lie in the order i f g o; a row of 4H is [4, H]. What a device keeps for itself (weights,
// products, the running hidden state) is in its own parameters.
template <class Types>
struct ForwardParams {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  using Operand = typename Types::Operand;

  Steps steps;
  Boundaries boundaries;
  int64_t hidden_size;      // H
  int64_t projection_size;  // P
  bool projected;           // P < H
  int64_t hidden_stride;    // of the running hidden state, [B, hidden_stride]; P or more
  const Storage* h_0;       // [B, P]
  CellState<const Storage, const Accum> c_0;

  Storage* gates;   // [N, 4H] activations, or null
  Accum* cells;     // [N, H], or null
  Storage* output;  // [N, output_stride], this direction's P columns
  int64_t output_stride;
  Storage* h_n;                   // [B, P] after each sequence's last step
  CellState<Storage, Accum> c_n;  // likewise
  Accum* cell_state;              // [B, H] in: c_0; scratch
  Operand* unprojected;           // [B, H] scratch: o tanh(c), with a projection
  Accum* projection;              // [B, P] scratch: its product with W_hr^T
};

template <class Types>
struct BackwardParams {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  using Operand = typename Types::Operand;

  Steps steps;
  Boundaries boundaries;
  int64_t hidden_size;
  int64_t projection_size;
  bool projected;
  const Storage* h_0;  // [B, P]
  CellState<const Storage, const Accum> c_0;

  const Storage* gates;   // [N, 4H]
  const Accum* cells;     // [N, H]
  const Storage* output;  // [N, output_stride]; null where T == 1
  int64_t output_stride;
  const Storage* grad_output;  // [N, output_stride], or null
  const Accum* grad_cells;     // [N, H], or null
  const Storage* grad_gates;   // [N, 4H], or null

  Accum* grad_hidden;            // [B, P] in: gradient of the last state; out: of the first
  Accum* grad_cell;              // [B, H] likewise
  Accum* grad_h_0;               // [B, P] added to at resets to the initial state, or null
  Accum* grad_c_0;               // [B, H] likewise
  Operand* grad_preactivations;  // [N, 4H] out
  Operand* h_prev;               // [N, P] out: the hidden state that entered each step
  Operand* grad_projection;      // [N, P] out: gradient of h, with a projection
  Operand* unprojected;          // [N, H] out: o tanh(c), with a projection
  Accum* grad_unprojected;       // [B, H] scratch
};

// One step of the walk, in the order in which the direction takes them.
struct Step {
  int64_t t;
  int64_t offset;    // its first row
  int64_t rows;      // sequences that have this step (the first ones of the batch)
  int64_t previous;  // the step before, and its rows; -1 and 0 for the first
  int64_t previous_offset;
  int64_t previous_rows;
  int64_t next;  // the step after, and its rows; -1 and 0 for the last
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

// Sequence b has a step t.
FUSED_LSTM_INLINE bool is_valid(const Boundaries& boundaries, int64_t t, int64_t b) {
  return !boundaries.lengths || t < boundaries.lengths[b];
}

// Sequence b starts afresh before step t. A border before step t of the sequence lies, for the
// reverse direction, between its steps t and t - 1.
FUSED_LSTM_INLINE bool starts_episode(const Boundaries& boundaries, const Steps& steps, int64_t t,
                                      int64_t b) {
  if (!boundaries.reset || t < 0) return false;
  const int64_t border = steps.reverse ? t + 1 : t;
  return border < steps.length && is_valid(boundaries, border, b) &&
         boundaries.reset[border * steps.batch + b];
}

template <class V, class Storage, class Accum>
FUSED_LSTM_INLINE V load_cell(const CellState<Storage, Accum>& cell, int64_t index, int count) {
  return cell.wide ? load<V>(cell.wide + index, count) : load<V>(cell.narrow + index, count);
}
template <class V, class Storage, class Accum>
FUSED_LSTM_INLINE void store_cell(const CellState<Storage, Accum>& cell, int64_t index, V value,
                                  int count) {
  if (cell.wide) {
    store<V>(cell.wide + index, value, count);
  } else {
    store<V>(cell.narrow + index, value, count);
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

// The hidden state that units j .. j + count of sequence b start from.
template <class V, class Types>
FUSED_LSTM_INLINE V first_hidden(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                 int64_t j, int count) {
  if (starts_episode(p.boundaries, p.steps, step.t, b) && !p.boundaries.reset_to_initial)
    return V{};
  return load<V>(p.h_0 + b * p.projection_size + j, count);
}

// The hidden state h of units j .. j + count of sequence b, after step `step`: into the output, and
// into `next` for the step after, which may begin a new episode. `hidden` is what the units have
// had until now; it may be the same memory as `next`.
template <class V, class Types>
FUSED_LSTM_INLINE void emit_hidden(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                   int64_t j, V h, const typename Types::Operand* hidden,
                                   typename Types::Operand* next, int count) {
  const int64_t state = b * p.projection_size + j;
  typename Types::Storage* output = p.output + (step.offset + b) * p.output_stride + j;
  V seen;
  if (is_valid(p.boundaries, step.t, b)) {
    store<V>(output, h, count);
    // What the next product reads is what the caller sees: rounded to the storage type.
    seen = load<V>(output, count);
    if (starts_episode(p.boundaries, p.steps, step.next, b)) {
      seen = p.boundaries.reset_to_initial ? load<V>(p.h_0 + state, count) : V{};
    }
  } else {
    store<V>(output, V{}, count);
    seen = load<V>(hidden, count);
  }
  store<V>(next, seen, count);
  if (b >= step.next_rows) store<V>(p.h_n + state, seen, count);
}

// What a step makes of units before their hidden state.
template <class V>
struct Updated {
  V cell, output_gate;
};

// The gates and the cell state of units j .. j + count of sequence b at step `step`, from their
// preactivations `sum`. cell_state: theirs, updated in place.
template <class V, class Types>
FUSED_LSTM_INLINE Updated<V> update_cell(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                         int64_t j, const Gates<V>& sum,
                                         typename Types::Accum* cell_state, int count) {
  const int64_t H = p.hidden_size;
  const int64_t row = step.offset + b;
  const int64_t state = b * H + j;

  V cell = load<V>(cell_state, count);
  Gates<V> gate = {V{}, V{}, V{}, V{}};
  if (is_valid(p.boundaries, step.t, b)) {
    if (starts_episode(p.boundaries, p.steps, step.t, b)) {
      cell = p.boundaries.reset_to_initial ? load_cell<V>(p.c_0, state, count) : V{};
    }
    gate = activate(sum);
    cell = next_cell(gate, cell);
    store<V>(cell_state, cell, count);
  }
  if (p.gates) store_gates<V>(p.gates + row * 4 * H, H, j, gate, count);
  if (p.cells) store<V>(p.cells + row * H + j, cell, count);
  if (b >= step.next_rows) store_cell<V>(p.c_n, state, cell, count);
  return {cell, gate.o};
}

// The hidden state after update_cell.
template <class V, class Types>
FUSED_LSTM_INLINE void update_hidden(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                     int64_t j, const Updated<V>& updated,
                                     const typename Types::Operand* hidden,
                                     typename Types::Operand* next, int count) {
  const V h = next_hidden(updated.output_gate, updated.cell);
  if (p.projected) {
    store<V>(p.unprojected + b * p.hidden_size + j, h, count);
  } else {
    emit_hidden<V>(p, step, b, j, h, hidden, next, count);
  }
}

// The hidden state that entered step `step`, for the gradient of the recurrent weight.
template <class V, class Types>
FUSED_LSTM_INLINE void save_h_prev(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                   int64_t j, int count) {
  const int64_t state = b * p.projection_size + j;
  V before = {};
  if (!is_valid(p.boundaries, step.t, b)) {
    // Nothing entered.
  } else if (starts_episode(p.boundaries, p.steps, step.t, b)) {
    if (p.boundaries.reset_to_initial) before = load<V>(p.h_0 + state, count);
  } else if (b < step.previous_rows && is_valid(p.boundaries, step.previous, b)) {
    before = load<V>(p.output + (step.previous_offset + b) * p.output_stride + j, count);
  } else {
    before = load<V>(p.h_0 + state, count);
  }
  store<V>(p.h_prev + (step.offset + b) * p.projection_size + j, before, count);
}

template <class V, class Types>
FUSED_LSTM_INLINE V load_grad_output(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                     int64_t j, int count) {
  if (!p.grad_output) return V{};
  return load<V>(p.grad_output + (step.offset + b) * p.output_stride + j, count);
}

// The gradient of the hidden state of units j .. j + count of sequence b after step `step`: from
// the output, and from the step after: grad_hidden, theirs, which is left empty for the step's own
// product.
template <class V, class Types>
FUSED_LSTM_INLINE V collect_grad_hidden(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                        int64_t j, V grad_output,
                                        typename Types::Accum* grad_hidden, int count) {
  if (!is_valid(p.boundaries, step.t, b)) return V{};
  V grad = load<V>(grad_hidden, count);
  store<V>(grad_hidden, V{}, count);
  if (starts_episode(p.boundaries, p.steps, step.next, b)) {
    if (p.grad_h_0) {
      typename Types::Accum* const first = p.grad_h_0 + b * p.projection_size + j;
      store<V>(first, load<V>(first, count) + grad, count);
    }
    grad = V{};
  }
  return grad + grad_output;
}

// What backward needs of units of a sequence at one step, none of which comes from another step's
// backward.
template <class V>
struct Saved {
  Gates<V> gate, grad_gate;
  V before, after;  // cell states
  V grad_after;     // of `after`, from the caller
};

template <class V, class Types>
FUSED_LSTM_INLINE Saved<V> load_saved(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                      int64_t j, int count) {
  const int64_t H = p.hidden_size;
  const int64_t row = step.offset + b;
  const int64_t state = b * H + j;
  Saved<V> saved = {};
  if (p.grad_cells) saved.grad_after = load<V>(p.grad_cells + row * H + j, count);
  if (!is_valid(p.boundaries, step.t, b)) return saved;
  if (starts_episode(p.boundaries, p.steps, step.t, b)) {
    if (p.boundaries.reset_to_initial) saved.before = load_cell<V>(p.c_0, state, count);
  } else if (b < step.previous_rows) {
    saved.before = load<V>(p.cells + (step.previous_offset + b) * H + j, count);
  } else {
    saved.before = load_cell<V>(p.c_0, state, count);
  }
  saved.after = load<V>(p.cells + row * H + j, count);
  saved.gate = load_gates<V>(p.gates + row * 4 * H, H, j, count);
  if (p.grad_gates) saved.grad_gate = load_gates<V>(p.grad_gates + row * 4 * H, H, j, count);
  return saved;
}

// Units j .. j + count of sequence b back through step `step`, from the gradient of o tanh(c) and
// of the cell state: grad_cell, theirs, updated in place. Returns the gradients of the
// preactivations.
template <class V, class Types>
FUSED_LSTM_INLINE Gates<V> backward_units(const BackwardParams<Types>& p, const Step& step,
                                          int64_t b, int64_t j, V grad_hidden,
                                          const Saved<V>& saved, typename Types::Accum* grad_cell,
                                          int count) {
  const int64_t H = p.hidden_size;
  const int64_t row = step.offset + b;
  const V grad_after = load<V>(grad_cell, count) + saved.grad_after;
  Gates<V> grad_preactivations = {V{}, V{}, V{}, V{}};
  V grad_before = grad_after, unprojected = {};
  if (is_valid(p.boundaries, step.t, b)) {
    const CellGradient<V> grad = cell_backward(saved.gate, saved.before, saved.after, grad_hidden,
                                               grad_after, saved.grad_gate);
    grad_preactivations = grad.preactivations;
    grad_before = grad.cell;
    if (starts_episode(p.boundaries, p.steps, step.t, b)) {
      if (p.grad_c_0) {
        typename Types::Accum* const first = p.grad_c_0 + b * H + j;
        store<V>(first, load<V>(first, count) + grad_before, count);
      }
      grad_before = V{};
    }
    if (p.projected) unprojected = next_hidden(saved.gate.o, saved.after);
  }
  store_gates<V>(p.grad_preactivations + row * 4 * H, H, j, grad_preactivations, count);
  if (p.projected) store<V>(p.unprojected + row * H + j, unprojected, count);
  store<V>(grad_cell, grad_before, count);
  return grad_preactivations;
}

}  // namespace
}  // namespace fused_lstm
