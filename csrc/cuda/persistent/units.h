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

// The initial cell state of a unit, of which one pointer is null, as it is stored.
template <class Storage>
struct InitialCell {
  float accum;
  Storage storage;

  template <class LayerParams>
  __device__ __forceinline__ void load(const LayerParams& p, int b, int H, int j, bool exists) {
    accum = load_if(exists && p.c_0.accum, element_at(p.c_0.accum, b, H, j));
    storage = load_if(exists && p.c_0.storage, element_at(p.c_0.storage, b, H, j));
  }
  template <class LayerParams>
  __device__ __forceinline__ float value(const LayerParams& p) const {
    return p.c_0.accum ? accum : widened(storage);
  }
};

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
  bool has_gates, has_cells;    // not null
  int H, output_bytes;          // output_bytes: of a row of the output
  float bias[4], ahead[4];      // of the next step: its preactivations but for the recurrent GEMM
  float cell;
  Storage hidden;  // after the last valid step
  // Of the state from which episodes start.
  float first_cell;
  Storage first_hidden;
  // As start has loaded them:
  InitialCell<Storage> initial_cell;
  Storage biases[2][4];

  __device__ __forceinline__ void start(const PersistentForwardParams<Types>& params, int part,
                                        const Timeline<kRagged>& timeline, int unit, int sequence,
                                        bool in_slice) {
    const ForwardParams<Types>& p = params.layer[part];
    H = in_register(static_cast<int>(p.hidden_size));
    j = unit;
    b = sequence;
    present = in_slice && unit < H && sequence < timeline.batch;
    const int stride = static_cast<int>(p.output_stride);
    output_bytes = in_register(stride * static_cast<int>(sizeof(Storage)));
    output = element_of(p.output, stride);
    preactivations = element_of(params.preactivations[part], 4 * H);
    gates = element_of(p.gates, 4 * H);
    cells = element_of(p.cells, H);
    has_gates = p.gates != nullptr;
    has_cells = p.cells != nullptr;
    episodes = Episodes<kRagged>(p.boundaries, timeline, sequence);
    hidden = load_if(present && p.h_0, element_at(p.h_0, b, H, j));
    initial_cell.load(p, b, H, j, present);
    const Storage* const arrays[2] = {params.bias_ih[part], params.bias_hh[part]};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        biases[i][gate] = load_if(arrays[i] && unit < H, element_at(arrays[i], gate, H, unit));
      }
    }
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) ahead[gate] = 0.0f;
  }

  // What a unit loads of a step of another sequence while it has not gone over to it.
  struct Ahead {
    float preactivations[4];
    Episodes<kRagged> episodes;
    InitialCell<Storage> first_cell;
  };
  // Loads that of the step `index`, with `rows`, of the sequence `sequences` after its own.
  __device__ __forceinline__ Ahead load_ahead(const ForwardParams<Types>& p,
                                              const Timeline<kRagged>& timeline, int sequences,
                                              const Rows& rows, int index) const {
    Ahead result = {};
    const int its = b + sequences;
    const bool exists = j < H && its < rows.count;
    const float* const from = row_of(preactivations, rows.first + sequences, 16 * H);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      result.preactivations[gate] = load_if(exists, row_of(from, gate, 4 * H));
    }
    result.episodes = Episodes<kRagged>(p.boundaries, timeline, its);
    result.episodes.load_start(timeline, index);
    if (kRagged) {
      result.first_cell.load(p, its, H, j, exists && p.boundaries.reset_to_initial);
    }
    return result;
  }
  // Goes over to it.
  __device__ __forceinline__ void move(const ForwardParams<Types>& p,
                                       const Timeline<kRagged>& timeline, int sequences,
                                       const Ahead& loaded) {
    b += sequences;
    present = j < H && b < timeline.batch;
    constexpr int bytes = sizeof(Storage);
    output = row_of(output, sequences, output_bytes);
    preactivations = row_of(preactivations, sequences, 16 * H);
    gates = row_of(gates, sequences, 4 * bytes * H);
    cells = row_of(cells, sequences, 4 * H);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) ahead[gate] = loaded.preactivations[gate];
    episodes = loaded.episodes;
    if (kRagged) first_cell = p.boundaries.reset_to_initial ? loaded.first_cell.value(p) : 0.0f;
  }

  // Has the arrays and biases of the same unit of an earlier sequence, to save registers: rows that
  // are passed from then on begin that many sequences later.
  __device__ __forceinline__ void share_arrays(const ForwardUnit& its) {
    H = its.H;
    output_bytes = its.output_bytes;
    preactivations = its.preactivations;
    output = its.output;
    gates = its.gates;
    cells = its.cells;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      biases[0][gate] = its.biases[0][gate];
      biases[1][gate] = its.biases[1][gate];
    }
  }

  // Once other loads have been issued, too.
  __device__ __forceinline__ void finish_start(const ForwardParams<Types>& p) {
    cell = initial_cell.value(p);
    const bool initial = p.boundaries.reset_to_initial;
    first_hidden = initial ? hidden : Storage{};
    first_cell = initial ? cell : 0.0f;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      bias[gate] = widened(biases[0][gate]) + widened(biases[1][gate]);
    }
  }

  // Loads what was made ahead of the step's preactivations.
  __device__ __forceinline__ void load(const Rows& rows) {
    const bool exists = present && (!kRagged || b < rows.count);
    const float* const from = row_of(preactivations, rows.first, 16 * H);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      ahead[gate] = load_if(exists, row_of(from, gate, 4 * H), ahead[gate]);
    }
  }

  // What the recurrent GEMM of the next step is added to.
  __device__ __forceinline__ float preactivation(int gate) const {
    return ahead[gate] + bias[gate];
  }

  // One step, from its preactivations; starts: an episode. Returns the gates, zero at a step that
  // is not valid.
  __device__ __forceinline__ Gates<FastFloat> step(const Rows& rows, int t, bool starts,
                                                   const float (&sums)[4]) {
    if (kRagged) cell = starts ? first_cell : cell;
    Gates<FastFloat> gate = activate(Gates<FastFloat>{sums[0], sums[1], sums[2], sums[3]});
    const FastFloat next = next_cell<FastFloat>(gate, cell);
    const Storage h = rounded<Storage>(next_hidden<FastFloat>(gate.o, next).value);
    const bool valid = episodes.valid(rows, b, t);
    cell = valid ? next.value : cell;
    hidden = valid ? h : hidden;
    return valid ? gate : Gates<FastFloat>{0.0f, 0.0f, 0.0f, 0.0f};
  }

  // The output of the step.
  __device__ __forceinline__ Storage emitted(const Rows& rows, int t) const {
    return episodes.valid(rows, b, t) ? hidden : Storage{};
  }

  // Stores what the caller sees of the step; kOutput: with the output.
  template <bool kOutput = true>
  __device__ __forceinline__ void emit(const Rows& rows, int t,
                                       const Gates<FastFloat>& gate) const {
    const bool exists = present && (!kRagged || b < rows.count);
    constexpr int bytes = sizeof(Storage);
    if (kOutput) store_if(exists, row_of(output, rows.first, output_bytes), emitted(rows, t));
    const bool stores_gates = exists && has_gates;
    Storage* const to = row_of(gates, rows.first, 4 * bytes * H);
    store_if(stores_gates, to, rounded<Storage>(gate.i.value));
    store_if(stores_gates, row_of(to, 1, bytes * H), rounded<Storage>(gate.f.value));
    store_if(stores_gates, row_of(to, 2, bytes * H), rounded<Storage>(gate.g.value));
    store_if(stores_gates, row_of(to, 3, bytes * H), rounded<Storage>(gate.o.value));
    store_if(exists && has_cells, row_of(cells, rows.first, 4 * H), cell);
  }

  // Stores a word of outputs, this unit's first, which another layer may await (awaited.h): of the
  // lanes that do.
  __device__ __forceinline__ void emit_word(bool does, const Rows& rows, uint32_t word) const {
    store_relaxed_if(does && present && b < rows.count,
                     reinterpret_cast<uint32_t*>(row_of(output, rows.first, output_bytes)), word);
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

// kStacked: grad_hidden has what comes from the layer after, too, as part of the output's gradient,
// and the kernel itself leaves out what an episode's start ends.
template <class Types, bool kRagged, bool kStacked = false>
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
  const float* grad_cells;       // [N, H], or null: kRagged alone
  const Storage* grad_gates;     // [N, 4H], or null: kRagged alone
  Storage* grad_preactivations;  // [N, 4H]
  int unit_distance = 0;         // of the unit from the element that those point to
  int H, output_bytes;           // output_bytes: of a row of grad_outputs
  InitialCell<Storage> stored_initial_cell;
  float initial_cell;              // c_0
  float grad_hidden, grad_cell;    // of the states after the step, from the steps after it
  float ended_hidden, ended_cell;  // of the states that episodes have started from
  float cell;                      // after the step, as stored
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
    ended_hidden = ended_cell = 0.0f;
    grad_cell_output = previous_cell = initial_cell = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] = grad_gate[i] = Storage{};
    grad_output = Storage{};
    stored_initial_cell.load(p, b, H, j, present);
    grad_hidden = load_if(present && p.grad_hidden, element_at(p.grad_hidden, b, H, j));
    grad_cell = load_if(present && p.grad_cell, element_at(p.grad_cell, b, H, j));
    cell = load_if(present && b < last.count, row_of(cells, last.first, 4 * H));
  }

  // For the same sequence's unit that is `distance` after that of `its`: has its arrays, whose rows
  // are then computed once for both, and its episodes.
  __device__ __forceinline__ void share(const BackwardUnit& its, int distance) {
    H = its.H;
    output_bytes = its.output_bytes;
    gates = its.gates;
    cells = its.cells;
    grad_outputs = its.grad_outputs;
    grad_cells = its.grad_cells;
    grad_gates = its.grad_gates;
    grad_preactivations = its.grad_preactivations;
    episodes = its.episodes;
    unit_distance = distance;
  }

  // Once other loads have been issued, too.
  __device__ __forceinline__ void finish_start(const BackwardParams<Types>& p, const Rows& last,
                                               const Rows& previous, bool has_previous) {
    initial_cell = stored_initial_cell.value(p);
    cell = b < last.count ? cell : initial_cell;
    previous_cell = has_previous && b < previous.count ? previous_cell : initial_cell;
  }

  // Loads what the step with `rows` reads; it comes after the one with `previous` in time's order,
  // if it has one.
  __device__ __forceinline__ void load(const Rows& rows, const Rows& previous, bool has_previous) {
    constexpr int bytes = sizeof(Storage);
    previous_cell = load_if(present && has_previous && (!kRagged || b < previous.count),
                            row_of(cells, previous.first, 4 * H) + unit_distance, initial_cell);
    const bool exists = present && (!kRagged || b < rows.count);
    const Storage* const from = row_of(gates, rows.first, 4 * bytes * H);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      gate[i] = load_if(exists, row_of(from, i, bytes * H) + unit_distance, gate[i]);
    }
    grad_output =
        load_if(exists && grad_outputs,
                row_of(grad_outputs, rows.first, output_bytes) + unit_distance, grad_output);
    if (!kRagged) return;
    grad_cell_output =
        load_if(exists && grad_cells, row_of(grad_cells, rows.first, 4 * H) + unit_distance,
                grad_cell_output);
    const Storage* const grads = row_of(grad_gates, rows.first, 4 * bytes * H);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      grad_gate[i] =
          load_if(exists && grad_gates, row_of(grads, i, bytes * H) + unit_distance, grad_gate[i]);
    }
  }

  // One step backward, once grad_hidden has the recurrent GEMM of the step after it. Returns the
  // gradients of the preactivations, zero at a step that is not valid.
  __device__ __forceinline__ Gates<FastFloat> step(const BackwardParams<Types>& p, const Rows& rows,
                                                   int t) {
    const bool valid = episodes.valid(rows, b, t), episode = episodes.starts();
    if (kRagged && !kStacked) end_gradient(ends && valid, grad_hidden, ended_hidden);
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
    end_gradient(episode, grad_cell, ended_cell);
    return valid ? grad.preactivations : Gates<FastFloat>{0.0f, 0.0f, 0.0f, 0.0f};
  }

  // Stores the gradients of the preactivations, rounded.
  __device__ __forceinline__ void emit(const Rows& rows, const Storage (&grad)[4]) const {
    const bool exists = present && (!kRagged || b < rows.count);
    constexpr int bytes = sizeof(Storage);
    Storage* const to = row_of(grad_preactivations, rows.first, 4 * bytes * H);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Storage* const at = row_of(to, i, bytes * H) + unit_distance;
      if constexpr (kStacked) {  // the layer before may await it (awaited.h)
        store_relaxed_if(exists, at, grad[i]);
      } else {
        store_if(exists, at, grad[i]);
      }
    }
  }

  __device__ __forceinline__ void finish(const BackwardParams<Types>& p) const {
    if (!present) return;
    const int64_t at = offset_of(b, static_cast<int>(p.hidden_size)) + j;
    if (p.grad_hidden) p.grad_hidden[at] = grad_hidden;
    if (p.grad_cell) p.grad_cell[at] = grad_cell;
    if (kRagged && p.grad_h_0) p.grad_h_0[at] += ended_hidden;
    if (kRagged && p.grad_c_0) p.grad_c_0[at] += ended_cell;
  }

 private:
  template <class T>
  __device__ __forceinline__ T* element_of(T* array, int width) const {
    return in_register(array ? array + offset_of(b, width) + j : nullptr);
  }
  // Where an episode starts, the gradient is that of the state that it starts from.
  static __device__ __forceinline__ void end_gradient(bool ends, float& grad, float& ended) {
    ended += ends ? grad : 0.0f;
    grad = ends ? 0.0f : grad;
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
