// One direction of one layer over all its time steps: the parameters of the kernels, the order of
// the steps, and what a step does to one hidden unit of one sequence. Free of torch.
#pragma once

#include "cell.h"

namespace fused_lstm {

// How the rows of a sequence lie in time. N = T * B rows, or fewer for a packed sequence.
struct Steps {
  int64_t length;          // T
  int64_t batch;           // B
  const int64_t* offsets;  // host [T + 1]: first row of each step of a packed sequence, or null
  bool reverse;            // from the last step to the first
};

// Where sequences end and begin inside the batch.
struct Borders {
  const int64_t* lengths;  // [B], or null: all of length T
  const bool* reset;       // [T, B]: a new episode starts at this step, or null
  bool reset_to_initial;   // it starts from hidden_0 and cell_0, not from zero
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
  Borders borders;
  int64_t hidden_size;      // H
  int64_t projection_size;  // P
  bool projected;           // P < H
  const Storage* hidden_0;  // [B, P]
  const Storage* cell_0;    // [B, H]

  Storage* gates;   // [N, 4H] activations, or null
  Accum* cells;     // [N, H], or null
  Storage* output;  // [N, output_stride], this direction's P columns
  int64_t output_stride;
  Storage* hidden_n;     // [B, P] after each sequence's last step
  Storage* cell_n;       // [B, H] likewise
  Accum* cell_state;     // [B, H] in: cell_0; scratch
  Operand* unprojected;  // [B, H] scratch: o tanh(c), with a projection
  Accum* projection;     // [B, P] scratch: its product with W_hr^T
};

template <class Types>
struct BackwardParams {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  using Operand = typename Types::Operand;

  Steps steps;
  Borders borders;
  int64_t hidden_size;
  int64_t projection_size;
  bool projected;
  const Storage* hidden_0;  // [B, P]
  const Storage* cell_0;    // [B, H]

  const Storage* gates;   // [N, 4H]
  const Accum* cells;     // [N, H]
  const Storage* output;  // [N, output_stride]
  int64_t output_stride;
  const Storage* grad_output;  // [N, output_stride], or null
  const Accum* grad_cells;     // [N, H], or null
  const Storage* grad_gates;   // [N, 4H], or null

  Accum* grad_hidden;            // [B, P] in: gradient of the last state; out: of the first
  Accum* grad_cell;              // [B, H] likewise
  Accum* grad_hidden_0;          // [B, P] added to at resets to the initial state, or null
  Accum* grad_cell_0;            // [B, H] likewise
  Operand* grad_preactivations;  // [N, 4H] out
  Operand* hidden_before;        // [N, P] out: the hidden state that entered each step
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

inline Step make_step(const Steps& steps, int64_t index) {
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
FUSED_LSTM_INLINE bool is_live(const Borders& borders, int64_t t, int64_t b) {
  return !borders.lengths || t < borders.lengths[b];
}

// Sequence b starts afresh before step t. A border before step t of the sequence lies, for the
// reverse direction, between its steps t and t - 1.
FUSED_LSTM_INLINE bool is_fresh(const Borders& borders, const Steps& steps, int64_t t, int64_t b) {
  if (!borders.reset || t < 0) return false;
  const int64_t border = steps.reverse ? t + 1 : t;
  return border < steps.length && is_live(borders, border, b) &&
         borders.reset[border * steps.batch + b];
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
  if (is_fresh(p.borders, p.steps, step.t, b) && !p.borders.reset_to_initial) return V{};
  return load<V>(p.hidden_0 + b * p.projection_size + j, count);
}

// The hidden state h of units j .. j + count of sequence b, after step `step`: into the output,
// and from `hidden` on into `next` (both [B, P], or one and the same) for the step after, which
// may begin a new episode.
template <class V, class Types>
FUSED_LSTM_INLINE void emit_hidden(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                   int64_t j, V h, const typename Types::Operand* hidden,
                                   typename Types::Operand* next, int count) {
  const int64_t state = b * p.projection_size + j;
  typename Types::Storage* output = p.output + (step.offset + b) * p.output_stride + j;
  V seen;
  if (is_live(p.borders, step.t, b)) {
    store<V>(output, h, count);
    // What the next product reads is what the caller sees: rounded to the storage type.
    seen = load<V>(output, count);
    if (is_fresh(p.borders, p.steps, step.next, b)) {
      seen = p.borders.reset_to_initial ? load<V>(p.hidden_0 + state, count) : V{};
    }
  } else {
    store<V>(output, V{}, count);
    seen = load<V>(hidden + state, count);
  }
  store<V>(next + state, seen, count);
  if (b >= step.next_rows) store<V>(p.hidden_n + state, seen, count);
}

// Units j .. j + count of sequence b through step `step`, from their preactivations `sum`.
template <class V, class Types>
FUSED_LSTM_INLINE void forward_units(const ForwardParams<Types>& p, const Step& step, int64_t b,
                                     int64_t j, const Gates<V>& sum,
                                     const typename Types::Operand* hidden,
                                     typename Types::Operand* next, int count) {
  const int64_t H = p.hidden_size;
  const int64_t row = step.offset + b;
  const int64_t state = b * H + j;

  V cell = load<V>(p.cell_state + state, count);
  Gates<V> gate = {V{}, V{}, V{}, V{}};
  V h = {};
  if (is_live(p.borders, step.t, b)) {
    if (is_fresh(p.borders, p.steps, step.t, b)) {
      cell = p.borders.reset_to_initial ? load<V>(p.cell_0 + state, count) : V{};
    }
    gate = activate(sum);
    cell = next_cell(gate, cell);
    h = next_hidden(gate, cell);
    store<V>(p.cell_state + state, cell, count);
  }
  if (p.gates) store_gates<V>(p.gates + row * 4 * H, H, j, gate, count);
  if (p.cells) store<V>(p.cells + row * H + j, cell, count);
  if (b >= step.next_rows) store<V>(p.cell_n + state, cell, count);
  if (p.projected) {
    store<V>(p.unprojected + state, h, count);
  } else {
    emit_hidden<V>(p, step, b, j, h, hidden, next, count);
  }
}

// The gradient of the hidden state of units j .. j + count of sequence b after step `step`: from
// the output, and from the step after (grad_hidden, which is left empty for the step's own
// product). Also notes the hidden state that entered the step.
template <class V, class Types>
FUSED_LSTM_INLINE V collect_grad_hidden(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                        int64_t j, int count) {
  const int64_t row = step.offset + b;
  const int64_t state = b * p.projection_size + j;
  typename Types::Operand* before = p.hidden_before + row * p.projection_size + j;
  if (!is_live(p.borders, step.t, b)) {
    store<V>(before, V{}, count);
    return V{};
  }
  V grad = load<V>(p.grad_hidden + state, count);
  store<V>(p.grad_hidden + state, V{}, count);
  if (is_fresh(p.borders, p.steps, step.next, b)) {
    if (p.grad_hidden_0) {
      store<V>(p.grad_hidden_0 + state, load<V>(p.grad_hidden_0 + state, count) + grad, count);
    }
    grad = V{};
  }
  if (p.grad_output) {
    grad = grad + load<V>(p.grad_output + row * p.output_stride + j, count);
  }

  if (is_fresh(p.borders, p.steps, step.t, b)) {
    store<V>(before, p.borders.reset_to_initial ? load<V>(p.hidden_0 + state, count) : V{}, count);
  } else if (b < step.previous_rows && is_live(p.borders, step.previous, b)) {
    store<V>(before, load<V>(p.output + (step.previous_offset + b) * p.output_stride + j, count),
             count);
  } else {
    store<V>(before, load<V>(p.hidden_0 + state, count), count);
  }
  return grad;
}

// Units j .. j + count of sequence b back through step `step`, from the gradient of o tanh(c).
template <class V, class Types>
FUSED_LSTM_INLINE void backward_units(const BackwardParams<Types>& p, const Step& step, int64_t b,
                                      int64_t j, V grad_hidden, int count) {
  const int64_t H = p.hidden_size;
  const int64_t row = step.offset + b;
  const int64_t state = b * H + j;
  typename Types::Operand* grad_preactivations = p.grad_preactivations + row * 4 * H;

  V grad_cell = load<V>(p.grad_cell + state, count);
  if (p.grad_cells) grad_cell = grad_cell + load<V>(p.grad_cells + row * H + j, count);
  if (!is_live(p.borders, step.t, b)) {
    store<V>(p.grad_cell + state, grad_cell, count);
    store_gates<V>(grad_preactivations, H, j, {V{}, V{}, V{}, V{}}, count);
    if (p.projected) store<V>(p.unprojected + row * H + j, V{}, count);
    return;
  }

  const bool fresh = is_fresh(p.borders, p.steps, step.t, b);
  V cell = {};
  if (fresh) {
    if (p.borders.reset_to_initial) cell = load<V>(p.cell_0 + state, count);
  } else if (b < step.previous_rows) {
    cell = load<V>(p.cells + (step.previous_offset + b) * H + j, count);
  } else {
    cell = load<V>(p.cell_0 + state, count);
  }
  const V after = load<V>(p.cells + row * H + j, count);
  const Gates<V> gate = load_gates<V>(p.gates + row * 4 * H, H, j, count);
  Gates<V> grad_gate = {V{}, V{}, V{}, V{}};
  if (p.grad_gates) grad_gate = load_gates<V>(p.grad_gates + row * 4 * H, H, j, count);

  const CellGradient<V> grad = cell_backward(gate, cell, after, grad_hidden, grad_cell, grad_gate);
  store_gates<V>(grad_preactivations, H, j, grad.preactivations, count);
  if (p.projected) store<V>(p.unprojected + row * H + j, next_hidden(gate, after), count);
  if (fresh && p.grad_cell_0) {
    store<V>(p.grad_cell_0 + state, load<V>(p.grad_cell_0 + state, count) + grad.cell, count);
  }
  store<V>(p.grad_cell + state, fresh ? V{} : grad.cell, count);
}

}  // namespace
}  // namespace fused_lstm
