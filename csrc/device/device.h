// What a device does for the layer: GEMMs, and the passes over all time steps. csrc/cpu/launch.cpp
// and csrc/cuda/launch.cpp implement it; layer.cpp is the only caller.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstring>
#include <optional>
#include <vector>

#include "core/sequence.h"
#include "device/torch_private.h"
#include "plan/plan.h"

namespace fused_lstm {

// The sizes of one call. P is proj_size, or H without a projection.
struct Sizes {
  int64_t T, B, N, D, H, P;
  int64_t directions;
  bool biases, projected, packed;
};

// What all directions of a call have in common.
struct Sequence {
  Sizes sizes;
  std::vector<int64_t> offsets;       // [T + 1] of a packed sequence, else empty
  std::optional<at::Tensor> lengths;  // [B] int64
  std::optional<at::Tensor> reset;    // [T, B] bool
  bool reset_to_initial;

  Steps steps(bool reverse) const {
    return {sizes.T, sizes.B, offsets.empty() ? nullptr : offsets.data(), reverse};
  }
  Boundaries boundaries() const {
    return {lengths ? lengths->const_data_ptr<int64_t>() : nullptr,
            reset ? reset->const_data_ptr<bool>() : nullptr, reset_to_initial};
  }
};

// One direction's weights, as nn.LSTM has them; those that the layer lacks are undefined.
struct Weights {
  at::Tensor ih;                // [4H, D]
  at::Tensor hh;                // [4H, P]
  at::Tensor bias_ih, bias_hh;  // [4H]
  at::Tensor hr;                // [P, H]
};

// The tensors of one call, all directions stacked in the first dimension where there is one. All
// are contiguous; optional ones that a call lacks are undefined. N is T * B, or the rows of a
// packed sequence.
struct ForwardTensors {
  std::vector<Weights> weights;
  at::Tensor input;  // [N, D]
  at::Tensor h_0;    // [directions, B, P] optional: zero
  at::Tensor c_0;    // [directions, B, H] optional: zero; CellState says in which type
  // Outputs:
  at::Tensor output;    // [N, directions * P]
  at::Tensor h_n, c_n;  // as h_0 and c_0, never undefined
  at::Tensor gates;     // [directions, N, 4H] optional
  at::Tensor cells;     // [directions, N, H] of accum_type, optional
  // Input, of a frozen layer: what Device::fragments made.
  at::TensorList fragments;
};

struct BackwardTensors {
  std::vector<Weights> weights;
  at::Tensor input;               // [N, D], read by recompute and for the weights' gradients
  at::Tensor h_0, c_0;            // as in ForwardTensors
  at::Tensor output;              // [N, directions * P], undefined where T == 1
  at::Tensor gates, cells;        // as in ForwardTensors, outputs of recompute
  at::Tensor grad_output;         // as output, optional
  at::Tensor grad_cells;          // as cells, optional
  at::Tensor grad_gates;          // as gates, optional
  at::Tensor grad_hidden;         // [directions, B, P] of accum_type; in: the gradient of h_n, out:
                                  // of the hidden state that entered the first step. Undefined if
                                  // the former is zero and h_0 absent, and the device does without
                                  // (reads_state_gradients)
  at::Tensor grad_cell;           // [directions, B, H] likewise
  at::Tensor grad_h_0, grad_c_0;  // as grad_hidden and grad_cell, for resets to the initial state,
                                  // whose gradients are added to them
  // Outputs, of operand_type:
  at::Tensor grad_preactivations;  // [directions, N, 4H]
  at::Tensor h_prev;               // [directions, N, P] the hidden state that entered each step,
                                   // optional
  at::Tensor grad_projection;      // [directions, N, P] of h, with a projection
  at::Tensor unprojected;          // [directions, N, H] o tanh(c), with a projection
};

// Of layer k in a stack, from that of the first one: its D is H.
Sequence sequence_of_layer(const Sequence& first, size_t k);

// The sizes as a plan's problem; what depends on the device is left zero.
inline Problem problem_of(const Sizes& sizes) {
  Problem problem = {};
  problem.length = sizes.T;
  problem.batch = sizes.B;
  problem.rows = sizes.N;
  problem.input = sizes.D;
  problem.hidden = sizes.H;
  problem.projection = sizes.P;
  problem.projected = sizes.projected;
  problem.directions = sizes.directions;
  return problem;
}

class Device {
 public:
  virtual ~Device() = default;
  // The type of GEMM operands, for a layer whose tensors have type `storage`.
  virtual at::ScalarType operand_type(at::ScalarType storage) const = 0;
  // out [M, N] = a [M, K] b [K, N], added to what is there if `accumulate`. a and b may be
  // transposed views; their type is operand_type(storage), out's is that or the accumulation type.
  virtual void gemm(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
                    bool accumulate) const = 0;
  virtual void forward(const Sequence& sequence, const ForwardTensors& layer) const = 0;
  // Fills layer.gates and layer.cells with what the forward pass had there.
  virtual void recompute(const Sequence& sequence, const BackwardTensors& layer) const = 0;
  virtual void backward(const Sequence& sequence, const BackwardTensors& layer) const = 0;

  // Several layers of one direction, without projections, each the input of the next; `sequence` is
  // that of the first one. Here one layer after the other (layers.cpp).
  virtual void forward_stack(const Sequence& sequence,
                             const std::vector<ForwardTensors>& layers) const;
  // The last layer alone has a grad_output; those of the others come from the layer above, and are
  // set where the device stores them.
  virtual void backward_stack(const Sequence& sequence, std::vector<BackwardTensors>& layers) const;
  // The largest hidden size of a stack whose layers it may take at once, of elements of so many
  // bytes; 0: of none.
  virtual int64_t largest_stacked(int /*element_bytes*/) const { return 0; }

  // The gradients over all steps, once backward has run, of operand_type or wider: here one GEMM
  // for each weight (gradients.cpp). Of the input, [N, D] or in the input's own shape.
  virtual at::Tensor input_gradient(const Sequence& sequence, const BackwardTensors& layer) const;
  // Of each direction's weights.
  virtual std::vector<Weights> weight_gradients(const Sequence& sequence,
                                                const BackwardTensors& layer) const;
  // Whether recompute or weight_gradients reads layer.h_prev, which they or backward then fill.
  virtual bool reads_h_prev(const Sequence& /*sequence*/, at::ScalarType /*storage*/) const {
    return true;
  }
  // Whether a frozen layer keeps fragments here, rather than panels.
  virtual bool keeps_fragments() const { return false; }
  // The weights once more, as the kernel that such a call takes loads them; undefined where it
  // reads them as they are.
  virtual at::Tensor fragments(const Sizes& /*sizes*/,
                               const std::vector<Weights>& /*weights*/) const {
    return {};
  }
  // Whether backward needs layer.grad_hidden and layer.grad_cell even where they start from zero
  // and nothing reads them afterwards.
  virtual bool reads_state_gradients() const { return true; }

 protected:
  // The bias's gradient, twice, from that of the preactivations [N, 4H].
  virtual void bias_gradients(const at::Tensor& grad, Weights& weights) const;
};

// A part of the hidden states that enter the steps: `hidden` [n, P] enters the rows first .. first
// + n - 1 of N.
struct EnteringRows {
  int64_t first;
  at::Tensor hidden;
};
// Of direction d of sequences without boundaries: rows of h_0 and of the output. Zero enters the
// other rows.
std::vector<EnteringRows> entering_rows(const Sequence& sequence, const BackwardTensors& layer,
                                        int64_t d);

// The input without what lies past the end of its sequences: the gradient there is 0, but 0 * x is
// NaN if x is, so x must be 0 too.
at::Tensor masked_input(const Sequence& sequence, const at::Tensor& input);

const Device& cpu_device();
const Device& cuda_device();
// This machine as a plan sees it, with the cost of its threads if there are more than one; measured
// at the first call.
const Machine& cpu_machine();
// CUDA device `index` as a plan sees it, with what its driver has refused so far; the rest is asked
// once.
Gpu gpu_of(int index);

// float32 or wider: the type of sums and of the cell state.
inline at::ScalarType accum_type(at::ScalarType storage) {
  return storage == at::kDouble ? at::kDouble : at::kFloat;
}

// at::empty; on a CPU without the dispatcher, whose overhead is noticeable in small calls.
inline at::Tensor allocate(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (options.device().is_cpu()) return torch_private::empty_on_cpu(sizes, options, 0);
  return at::empty(sizes, options);
}

inline at::Tensor allocate_zeros(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::Tensor tensor = allocate(sizes, options);
  if (!options.device().is_cpu()) return tensor.zero_();
  if (tensor.numel() > 0) std::memset(tensor.mutable_data_ptr(), 0, tensor.nbytes());
  return tensor;
}

// The first element of a tensor, or of its slice [d]; null if it is undefined.
template <class T>
T* pointer(const at::Tensor& tensor, int64_t d = 0) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) + d * tensor.stride(0) : nullptr;
}
// Direction d of c_0 or c_n, [B, H], in a layer whose tensors have type `storage`.
template <class Storage, class Accum>
CellState<Storage, Accum> cell_state(const at::Tensor& cell, at::ScalarType storage, int64_t d) {
  if (!cell.defined()) return {nullptr, nullptr};
  if (cell.scalar_type() == storage) return {pointer<Storage>(cell, d), nullptr};
  return {nullptr, pointer<Accum>(cell, d)};
}

// The parameters that forward and backward kernels have in common, for direction d.
template <class Params, class Storage, class Accum, class Layer>
Params common_params(const Sequence& sequence, const Layer& layer, int64_t d) {
  const Sizes& sizes = sequence.sizes;
  Params p = {};
  p.steps = sequence.steps(/*reverse=*/d == 1);
  p.boundaries = sequence.boundaries();
  p.hidden_size = sizes.H;
  p.projection_size = sizes.P;
  p.projected = sizes.projected;
  p.h_0 = pointer<Storage>(layer.h_0, d);
  p.c_0 = cell_state<const Storage, const Accum>(layer.c_0, layer.weights[d].ih.scalar_type(), d);
  p.gates = pointer<Storage>(layer.gates, d);
  p.cells = pointer<Accum>(layer.cells, d);
  p.output = pointer<Storage>(layer.output);
  if (p.output) p.output += d * sizes.P;
  p.output_stride = sizes.directions * sizes.P;
  return p;
}

template <class Types>
ForwardParams<Types> forward_params(const Sequence& sequence, const ForwardTensors& layer,
                                    int64_t d) {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  auto p = common_params<ForwardParams<Types>, Storage, Accum>(sequence, layer, d);
  p.h_n = pointer<Storage>(layer.h_n, d);
  p.c_n = cell_state<Storage, Accum>(layer.c_n, layer.h_n.scalar_type(), d);
  return p;
}

template <class Types>
BackwardParams<Types> backward_params(const Sequence& sequence, const BackwardTensors& layer,
                                      int64_t d) {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  using Operand = typename Types::Operand;
  auto p = common_params<BackwardParams<Types>, Storage, Accum>(sequence, layer, d);
  p.grad_output = pointer<Storage>(layer.grad_output);
  if (p.grad_output) p.grad_output += d * sequence.sizes.P;
  p.grad_cells = pointer<Accum>(layer.grad_cells, d);
  p.grad_gates = pointer<Storage>(layer.grad_gates, d);
  p.grad_hidden = pointer<Accum>(layer.grad_hidden, d);
  p.grad_cell = pointer<Accum>(layer.grad_cell, d);
  p.grad_h_0 = pointer<Accum>(layer.grad_h_0, d);
  p.grad_c_0 = pointer<Accum>(layer.grad_c_0, d);
  p.grad_preactivations = pointer<Operand>(layer.grad_preactivations, d);
  p.h_prev = pointer<Operand>(layer.h_prev, d);
  p.grad_projection = pointer<Operand>(layer.grad_projection, d);
  p.unprojected = pointer<Operand>(layer.unprojected, d);
  return p;
}

}  // namespace fused_lstm
