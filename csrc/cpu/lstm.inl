// The recurrence on the CPU, forward and backward.
//
// A thread runs a Part: some sequences, and some hidden units of all of them.
//
//   for each chunk of steps
//     input GEMM, all steps at once:   x [rows of the chunk, D] W_ih^T + biases
//                                        -> preactivations [blocks of units, rows, 4, lanes]
//     for each step
//       barrier: h_{t-1} of all units is there
//       for each block of units, for each tile of rows
//         recurrent GEMM:              preactivations + h_{t-1} [rows, P] W_hh^T  -> tile
//         finish_tile:                 gates, c_t in place; h_t -> output and the other hidden
//                                      buffer (two take turns: others still read h_{t-1})
//
//   Backward goes through the steps in reverse order: the gradients of a step's preactivations,
//   barrier, then grad_hidden += grad_preactivations [rows, 4H] W_hh.
#pragma once

#include "cpu/gate_gemm.inl"
#include "cpu/gradients.inl"

namespace fused_lstm::cpu {
namespace {

// The part's sequences that have the step: the first ones.
int64_t rows_of_step(const Step& step, const Part& part) {
  const int64_t rows = (step.rows < part.batch_end ? step.rows : part.batch_end) - part.batch_begin;
  return rows < 0 ? 0 : rows;
}

// A part's memory.
template <class Types>
struct Scratch {
  using Scalar = typename Types::Accum;
  using Storage = typename Types::Storage;
  using Operand = typename Types::Operand;
  using State = typename Types::State;
  static constexpr int64_t width = kTileVectors * lanes_of<Types>();
  static constexpr bool copies_input = has_amx_tiles<Types> || !std::is_same_v<Storage, Operand>;
  static constexpr bool copies_state = !std::is_same_v<State, Operand>;

  // For a part of so many sequences and hidden units; `size` is right without memory too.
  Scratch(const CpuForwardParams<Types>& f, int64_t sequences, int64_t units, Scalar* memory)
      : rows(touched_rows<Types>(f.chunk * sequences)) {
    const ForwardParams<Types>& p = f.layer;
    constexpr int64_t lanes = lanes_of<Types>();
    const int64_t blocks = (units + lanes - 1) / lanes, groups = (rows + lanes - 1) / lanes;
    const int64_t D = row_size<Types>(f.input_size), P = row_size<Types>(p.projection_size);
    const int64_t H = row_size<Types>(p.hidden_size), depth = D > P ? D : P;
    const int64_t touched = touched_rows<Types>(sequences);
    const bool transposes =
        f.input_gemm == Gemm::transposed || f.recurrent_gemm == Gemm::transposed;
    int64_t bytes = 0;
    const auto allocate = [&](auto*& to, int64_t elements) {
      using Pointer = std::remove_reference_t<decltype(to)>;
      constexpr int64_t block = width * sizeof(Scalar);
      to = memory ? reinterpret_cast<Pointer>(reinterpret_cast<char*>(memory) + bytes) : nullptr;
      bytes += (elements * static_cast<int64_t>(sizeof(*to)) + block - 1) / block * block;
    };
    allocate(bias, blocks * width);
    allocate(panel, is_frozen<Types> ? 0 : depth * width);
    allocate(transposed, transposes ? groups * lanes * depth : 0);
    allocate(preactivations, blocks * rows * width);
    allocate(x, rows);
    allocate(input, copies_input ? rows * D : 0);
    allocate(state, copies_state ? touched * P : 0);
    const int64_t staged = is_frozen<Types> ? touched : has_amx_tiles<Types> ? kAmxRows : 0;
    allocate(stage, p.projected ? staged * H : 0);
    size = bytes / static_cast<int64_t>(sizeof(Scalar));
  }

  int64_t rows;            // at most, of one chunk of steps
  Scalar* bias;            // [blocks, 4, lanes] b_ih + b_hh
  Operand* panel;          // [panel_depth, 4, lanes] packed_on_use
  Operand* transposed;     // [groups, depth, lanes] transposed rows of input or h
  Scalar* preactivations;  // [blocks, rows, 4, lanes] x W_ih^T + biases
  const Operand** x;       // [rows] rows of a GEMM's left factor
  Operand* input;          // [rows, row_size(D)] copy of input that is not read in place
  Operand* state;          // [sequences, row_size(P)] likewise of the hidden state
  Operand* stage;          // [16 or sequences, row_size(H)] of o tanh(c), for the GEMM with W_hr
  int64_t size;            // of all, in elements of Scalar
};

template <class Types>
int64_t forward_scratch_size(const CpuForwardParams<Types>& f, int64_t sequences, int64_t units) {
  return Scratch<Types>(f, sequences, units, nullptr).size;
}

// The GEMM of scratch.x [rows], pointers to rows [depth], with a gate weight.
template <class Types>
GateGemm<Types> make_gate_gemm(const CpuForwardParams<Types>& f, const Scratch<Types>& scratch,
                               Gemm strategy, const Weight<Types>& weight, int64_t depth,
                               int64_t x_stride, int64_t rows) {
  if constexpr (reads_weights_in_place<Types>) {
    if (strategy == Gemm::transposed) {
      transpose_rows<VectorOfTypes<Types>>(scratch.x, rows, depth, scratch.transposed);
    }
  }
  return {strategy,
          weight,
          f.layer.hidden_size,
          depth,
          scratch.x,
          x_stride,
          tiles_of<Types>(strategy, rows),
          scratch.panel,
          scratch.transposed};
}

// Initialises the part's cell state, hidden state (both buffers) and biases.
template <class Types>
void initialize(const CpuForwardParams<Types>& f, const Part& part, const Scratch<Types>& scratch) {
  using V = VectorOfTypes<Types>;
  const ForwardParams<Types>& p = f.layer;
  const int64_t H = p.hidden_size, P = p.projection_size;
  const Step step = make_step(p.steps, 0);
  for (int64_t b = part.batch_begin; b < part.batch_end; ++b) {
    for_vectors<V>(part.unit_begin, part.unit_end, [&](int64_t j, int count) {
      store<V>(p.cell_state + b * H + j, load_cell<V>(p.c_0, b * H + j, count), count);
    });
    const int64_t first = p.projected ? 0 : part.unit_begin;
    for_vectors<V>(first, p.projected ? P : part.unit_end, [&](int64_t j, int count) {
      const V h = first_hidden<V>(p, step, b, j, count);
      for (typename Types::State* hidden : f.hidden) {
        store<V>(hidden + b * p.hidden_stride + j, h, count);
      }
    });
    if (p.projected || part.unit_end == H) {
      for (typename Types::State* hidden : f.hidden) {
        for (int64_t j = P; j < p.hidden_stride; ++j) hidden[b * p.hidden_stride + j] = {};
      }
    }
  }
  typename Types::Accum* to = scratch.bias;
  for_vectors<V>(part.unit_begin, part.unit_end, [&](int64_t j, int count) {
    for (int gate = 0; gate < kTileVectors; ++gate, to += Lanes<V>::count) {
      V sum = {};
      if (f.bias_ih) sum += load<V>(f.bias_ih + gate * H + j, count);
      if (f.bias_hh) sum += load<V>(f.bias_hh + gate * H + j, count);
      store<V>(to, sum, Lanes<V>::count);
    }
  });
}

// scratch.preactivations of the steps first .. last. Returns how many rows these have.
template <class Types>
int64_t multiply_input(const CpuForwardParams<Types>& f, const Part& part,
                       const Scratch<Types>& scratch, int64_t first, int64_t last) {
  using Storage = typename Types::Storage;
  using Operand = typename Types::Operand;
  constexpr int64_t lanes = lanes_of<Types>(), width = kTileVectors * lanes;
  const int64_t D = f.input_size, depth = row_size<Types>(D);
  int64_t rows = 0;
  const auto row_of_input = [&](const Storage* from) -> const Operand* {
    if constexpr (std::is_same_v<Storage, Operand>) {
      if (!Scratch<Types>::copies_input || f.input_gemm == Gemm::dot) return from;
    }
    Operand* const to = scratch.input + rows * depth;
    make_operand_row<Types>(from, D, to);
    return to;
  };
  for (int64_t index = first; index < last; ++index) {
    const Step step = make_step(f.layer.steps, index);
    const int64_t row = step.offset + part.batch_begin, end = row + rows_of_step(step, part);
    for (int64_t r = row; r < end; ++r, ++rows) scratch.x[rows] = row_of_input(f.input + r * D);
  }
  const GateGemm<Types> g = make_gate_gemm(f, scratch, f.input_gemm, f.weight_ih, D, depth, rows);
  const typename Types::Accum* bias = scratch.bias;
  typename Types::Accum* preactivations = scratch.preactivations;
  for (int64_t j = part.unit_begin; j < part.unit_end; j += lanes) {
    for_gate_tiles(g, j, [&](const GateTile<Types>& tile) {
      multiply_gates(tile, bias, 0, preactivations + tile.row * width);
    });
    bias += width;
    preactivations += scratch.rows * width;
  }
  return rows;
}

// The cell for the units j .. and the sequences b .. b + rows: from preactivations sums [rows, 4,
// lanes], which are overwritten. First all cell states, then all hidden states: the operations of
// one row depend on one another, those of several rows overlap. noinline: tiles of every height
// share one copy.
template <class V, class Types>
__attribute__((noinline)) void finish_tile(const CpuForwardParams<Types>& f, const Step& step,
                                           int64_t b, int64_t rows, int64_t j,
                                           typename Types::Accum* sums,
                                           const typename Types::State* hidden,
                                           typename Types::State* next) {
  constexpr int lanes = Lanes<V>::count;
  const auto finish = [&](int count) {
    for (int64_t r = 0; r < rows; ++r) {
      typename Types::Accum* const row = sums + r * kTileVectors * lanes;
      const Updated<V> updated =
          update_cell<V>(f.layer, step, b + r, j, load_gates<V>(row, lanes, 0, lanes),
                         f.layer.cell_state + (b + r) * f.layer.hidden_size + j, count);
      store<V>(row, updated.cell, lanes);
      store<V>(row + lanes, updated.output_gate, lanes);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const typename Types::Accum* const row = sums + r * kTileVectors * lanes;
      const int64_t state = (b + r) * f.layer.hidden_stride + j;
      update_hidden<V>(f.layer, step, b + r, j, {load<V>(row, lanes), load<V>(row + lanes, lanes)},
                       hidden + state, next + state, count);
    }
  };
  const int64_t left = f.layer.hidden_size - j;
  if (left >= lanes) {
    finish(lanes);
  } else {
    finish(static_cast<int>(left));
  }
}

// projection [rows, P] = unprojected [rows, H] W_hr^T of a frozen layer, whose W_hr has panels like
// the gates'.
template <class Types>
void project_frozen(const CpuForwardParams<Types>& f, const Scratch<Types>& scratch,
                    const typename Types::State* unprojected, int64_t rows,
                    typename Types::Accum* projection) {
  using Scalar = typename Types::Accum;
  using V = VectorOfTypes<Types>;
  constexpr int64_t width = Scratch<Types>::width;
  const int64_t H = f.layer.hidden_size, P = f.layer.projection_size, stride = row_size<Types>(H);
  for (int64_t r = 0; r < rows; ++r) {
    make_operand_row<Types>(unprojected + r * H, H, scratch.stage + r * stride);
    scratch.x[r] = scratch.stage + r * stride;
  }
  const Scalar zero[width] = {};
  const int64_t panel_elements = panel_size<Types>({nullptr, P, H, PanelLayout::plain_transposed});
  for (int64_t first = 0; first < P; first += width) {
    const auto* const panel = f.weight_hr.panels + first / width * panel_elements;
    tiles_of<Types>(Gemm::packed_ahead, rows).for_each([&](int64_t row, int64_t height) {
      alignas(64) Scalar sums[kMaxTileRows<Types> * width];
      multiply_by_panel<Types>(scratch.x + row, stride, height, H, panel, zero, 0, sums);
      for (int64_t r = 0; r < height; ++r) {
        for_vectors<V>(first, first + width < P ? first + width : P, [&](int64_t j, int count) {
          store<V>(projection + (row + r) * P + j, load<V>(sums + r * width + j - first, count),
                   count);
        });
      }
    });
  }
}

// One step of the part's units. preactivations [blocks, rows, 4, lanes], blocks scratch.rows apart:
// x W_ih^T + biases.
template <class Types>
void run_step(const CpuForwardParams<Types>& f, const Part& part, const Scratch<Types>& scratch,
              const Step& step, int64_t index, int64_t rows,
              const typename Types::Accum* preactivations) {
  using Scalar = typename Types::Accum;
  using State = typename Types::State;
  using V = VectorOfTypes<Types>;
  constexpr int64_t lanes = lanes_of<Types>(), width = kTileVectors * lanes;
  const ForwardParams<Types>& p = f.layer;
  const int64_t P = p.projection_size;
  const State* const hidden = f.hidden[index % 2];
  State* const next = f.hidden[(index + 1) % 2];

  int64_t stride = p.hidden_stride;
  if constexpr (Scratch<Types>::copies_state) stride = row_size<Types>(P);
  for (int64_t r = 0; r < rows; ++r) {
    const State* const h = hidden + (part.batch_begin + r) * p.hidden_stride;
    if constexpr (Scratch<Types>::copies_state) {
      make_operand_row<Types>(h, P, scratch.state + r * stride);
      scratch.x[r] = scratch.state + r * stride;
    } else {
      scratch.x[r] = h;
    }
  }
  const GateGemm<Types> g =
      make_gate_gemm(f, scratch, f.recurrent_gemm, f.weight_hh, P, stride, rows);
  // Every other step goes through the blocks in descending order: what was read last is still in
  // the cache.
  const int64_t blocks = (part.unit_end - part.unit_begin + lanes - 1) / lanes;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t block = index % 2 ? blocks - 1 - i : i, j = part.unit_begin + block * lanes;
    const Scalar* const start = preactivations + block * scratch.rows * width;
    for_gate_tiles(g, j, [&](const GateTile<Types>& tile) {
      alignas(64) Scalar sums[kMaxTileRows<Types> * width];
      multiply_gates(tile, start + tile.row * width, width, sums);
      finish_tile<V>(f, step, part.batch_begin + tile.row, tile.height, j, sums, hidden, next);
    });
  }

  if (p.projected) {
    const int64_t b_end = part.batch_begin + rows;
    const State* const unprojected = p.unprojected + part.batch_begin * p.hidden_size;
    Scalar* const projection = p.projection + part.batch_begin * P;
    if constexpr (is_frozen<Types>) {
      project_frozen(f, scratch, unprojected, rows, projection);
    } else {
      gemm<Types>(unprojected, p.hidden_size, f.weight_hr, projection, P, 0, P, rows,
                  /*accumulate=*/false, /*descending=*/false, scratch.stage);
    }
    for (int64_t b = part.batch_begin; b < b_end; ++b) {
      for_vectors<V>(0, P, [&](int64_t j, int count) {
        const V h = load<V>(p.projection + b * P + j, count);
        const int64_t state = b * p.hidden_stride + j;
        emit_hidden<V>(p, step, b, j, h, hidden + state, next + state, count);
      });
    }
  }
}

template <class Types>
void forward(const CpuForwardParams<Types>& f, const Part& part) {
  [[maybe_unused]] const TileConfiguration<has_amx_tiles<Types>> tiles;
  const Steps& steps = f.layer.steps;
  const Scratch<Types> scratch(f, part.batch_end - part.batch_begin,
                               part.unit_end - part.unit_begin,
                               f.scratch + part.index * f.scratch_size);
  initialize(f, part, scratch);
  for (int64_t first = 0; first < steps.length; first += f.chunk) {
    const int64_t last = first + f.chunk < steps.length ? first + f.chunk : steps.length;
    if (multiply_input(f, part, scratch, first, last) == 0) continue;
    const typename Types::Accum* preactivations = scratch.preactivations;
    for (int64_t index = first; index < last; ++index) {
      const Step step = make_step(steps, index);
      const int64_t rows = rows_of_step(step, part);
      if (rows == 0) continue;
      if (part.barrier) part.barrier->arrive_and_wait(part.participants);
      run_step(f, part, scratch, step, index, rows, preactivations);
      preactivations += rows * Scratch<Types>::width;
    }
  }
}

template <class Types>
int64_t stage_size(int64_t depth) {
  if (has_amx_tiles<Types>) return touched_rows<Types>(1) * panel_depth<Types>(depth);
  return kDepthBlock * kTileVectors * lanes_of<Types>();
}

template <class Types>
void backward(const CpuBackwardParams<Types>& f, const Part& part) {
  using V = VectorOfTypes<Types>;
  [[maybe_unused]] const TileConfiguration<has_amx_tiles<Types>> tiles;
  typename Types::Operand* const stage = f.stage ? f.stage + part.index * f.stage_size : nullptr;
  const BackwardParams<Types>& p = f.layer;
  const int64_t H = p.hidden_size, P = p.projection_size;

  for (int64_t index = p.steps.length - 1; index >= 0; --index) {
    const Step step = make_step(p.steps, index);
    const int64_t rows = rows_of_step(step, part);
    if (rows == 0) continue;
    const int64_t row = step.offset + part.batch_begin, end = part.batch_begin + rows;

    if (p.projected) {
      for (int64_t b = part.batch_begin; b < end; ++b) {
        for_vectors<V>(0, P, [&](int64_t j, int count) {
          save_h_prev<V>(p, step, b, j, count);
          const V grad =
              collect_grad_hidden<V>(p, step, b, j, load_grad_output<V>(p, step, b, j, count),
                                     p.grad_hidden + b * P + j, count);
          store<V>(p.grad_projection + (step.offset + b) * P + j, grad, count);
        });
      }
      gemm<Types>(p.grad_projection + row * P, P, f.weight_hr,
                  p.grad_unprojected + part.batch_begin * H, H, 0, H, rows, /*accumulate=*/false,
                  /*descending=*/false, stage);
    }
    for (int64_t b = part.batch_begin; b < end; ++b) {
      for_vectors<V>(part.unit_begin, part.unit_end, [&](int64_t j, int count) {
        const int64_t state = b * H + j;
        V grad;
        if (p.projected) {
          grad = load<V>(p.grad_unprojected + state, count);
        } else {
          save_h_prev<V>(p, step, b, j, count);
          grad = collect_grad_hidden<V>(p, step, b, j, load_grad_output<V>(p, step, b, j, count),
                                        p.grad_hidden + state, count);
        }
        backward_units<V>(p, step, b, j, grad, load_saved<V>(p, step, b, j, count),
                          p.grad_cell + state, count);
      });
    }
    if (part.barrier) part.barrier->arrive_and_wait(part.participants);
    const auto* grads = p.grad_preactivations + row * 4 * H;
    auto* grad_hidden = p.grad_hidden + part.batch_begin * P;
    const int64_t first = p.projected ? 0 : part.unit_begin;
    const int64_t last = p.projected ? P : part.unit_end;
    if (f.recurrent_gemm == Gemm::dot) {
      accumulate_gemv<V>(grads, 4 * H, f.weight_hh.data, grad_hidden, P, first, last, rows);
    } else {
      gemm<Types>(grads, 4 * H, f.weight_hh, grad_hidden, P, first, last, rows,
                  /*accumulate=*/true, /*descending=*/index % 2 == 1, stage);
    }
  }
}

// The GEMMs of the gradients; the library has those in AMX tiles.
template <class Types>
constexpr GradientFunctions<Types> gradient_functions() {
  if constexpr (has_amx_tiles<Types>) {
    return {};
  } else {
    return {input_gradient<Types>, weight_gradient_scratch_size<Types>, weight_gradient<Types>};
  }
}

template <class Types>
constexpr Functions<Types> functions = {
    panel_count<Types>, panel_size<Types>, pack<Types>,     forward_scratch_size<Types>,
    stage_size<Types>,  forward<Types>,    backward<Types>, gradient_functions<Types>()};

}  // namespace

}  // namespace fused_lstm::cpu
