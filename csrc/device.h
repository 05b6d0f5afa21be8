// What a device does for the layer: matrix products, and the walk over time. csrc/cpu/device.cpp
// and csrc/cuda/device.cpp implement it; layer.cpp is the only user.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <vector>

#include "plan.h"
#include "sequence.h"

namespace fused_lstm {

// The sizes of one call. P is proj_size, or H without a projection.
struct Sizes {
  int64_t T, B, N, D, H, P;
  int64_t directions;
  bool biases, projected, packed;
};

// What all directions of a call share.
struct Sequence {
  Sizes sizes;
  std::vector<int64_t> offsets;       // [T + 1] of a packed sequence, else empty
  std::optional<at::Tensor> lengths;  // [B] int64
  std::optional<at::Tensor> reset;    // [T, B] bool
  bool reset_to_initial;

  Steps steps(bool reverse) const {
    return {sizes.T, sizes.B, offsets.empty() ? nullptr : offsets.data(), reverse};
  }
  Borders borders() const {
    return {lengths ? lengths->const_data_ptr<int64_t>() : nullptr,
            reset ? reset->const_data_ptr<bool>() : nullptr, reset_to_initial};
  }
};

// One direction; shapes as in ForwardParams and BackwardParams. Undefined where those say null.
// Every tensor is contiguous but output and grad_output, which are columns of a wider one.
struct DirectionForward {
  bool reverse;
  at::Tensor input, weight_ih, weight_hh, weight_hr, bias_ih, bias_hh, hidden_0, cell_0;
  at::Tensor gates, cells, output, hidden_state, cell_state;
  at::Tensor preactivations;  // the device's own
};

struct DirectionBackward {
  bool reverse;
  at::Tensor weight_hh, weight_hr, hidden_0, cell_0, gates, cells, output;
  at::Tensor grad_output, grad_cells, grad_gates;
  at::Tensor grad_hidden, grad_cell, grad_hidden_0, grad_cell_0;
  at::Tensor grad_preactivations, hidden_before, grad_projection, unprojected;
};

class Device {
 public:
  virtual ~Device() = default;
  // The type that products read, for a layer whose tensors have type `storage`.
  virtual at::ScalarType operand_type(at::ScalarType storage) const = 0;
  // out [M, N] = a [M, K] b [K, N], added to what is there if `accumulate`. a and b may be
  // transposed views; their type is operand_type(storage), out's is that or the accumulation type.
  virtual void product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
                       bool accumulate) const = 0;
  virtual void forward(const Sequence& sequence,
                       std::vector<DirectionForward>& directions) const = 0;
  virtual void backward(const Sequence& sequence,
                        std::vector<DirectionBackward>& directions) const = 0;
};

const Device& cpu_device();
const Device& cuda_device();

// float32 or wider: the type of sums and of the cell state.
inline at::ScalarType accum_type(at::ScalarType storage) {
  return storage == at::kDouble ? at::kDouble : at::kFloat;
}

// Room for [N, 4H] preactivations. Where the types agree, the activations overwrite them.
inline at::Tensor preactivations_of(const Sizes& s, const DirectionForward& d) {
  const at::TensorOptions options = d.cell_state.options();
  const bool in_place = d.gates.defined() && d.gates.scalar_type() == d.cell_state.scalar_type();
  return in_place ? d.gates : at::empty({s.N, 4 * s.H}, options);
}

template <class T>
T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

// What the parameters of both walks have in common.
template <class Types, class Params, class Direction>
Params common_params(const Sequence& sequence, const Direction& d) {
  using Storage = typename Types::Storage;
  using Operand = typename Types::Operand;
  const Sizes& sizes = sequence.sizes;
  Params p = {};
  p.steps = sequence.steps(d.reverse);
  p.borders = sequence.borders();
  p.hidden_size = sizes.H;
  p.projection_size = sizes.P;
  p.projected = sizes.projected;
  p.weight_hh = pointer<Operand>(d.weight_hh);
  p.weight_hr = pointer<Operand>(d.weight_hr);
  p.hidden_0 = pointer<Storage>(d.hidden_0);
  p.cell_0 = pointer<Storage>(d.cell_0);
  p.gates = pointer<Storage>(d.gates);
  p.cells = pointer<typename Types::Accum>(d.cells);
  p.output = pointer<Storage>(d.output);
  p.output_stride = sizes.directions * sizes.P;
  return p;
}

template <class Types>
ForwardParams<Types> forward_params(const Sequence& sequence, const DirectionForward& d) {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  using Operand = typename Types::Operand;
  auto p = common_params<Types, ForwardParams<Types>>(sequence, d);
  p.input_size = sequence.sizes.D;
  p.input = pointer<Operand>(d.input);
  p.bias_ih = pointer<Storage>(d.bias_ih);
  p.bias_hh = pointer<Storage>(d.bias_hh);
  p.preactivations = pointer<Accum>(d.preactivations);
  p.hidden_state = pointer<Operand>(d.hidden_state);
  p.hidden_next = p.hidden_state;
  p.cell_state = pointer<Accum>(d.cell_state);
  return p;
}

template <class Types>
BackwardParams<Types> backward_params(const Sequence& sequence, const DirectionBackward& d) {
  using Storage = typename Types::Storage;
  using Accum = typename Types::Accum;
  using Operand = typename Types::Operand;
  auto p = common_params<Types, BackwardParams<Types>>(sequence, d);
  p.grad_output = pointer<Storage>(d.grad_output);
  p.grad_cells = pointer<Accum>(d.grad_cells);
  p.grad_gates = pointer<Storage>(d.grad_gates);
  p.grad_hidden = pointer<Accum>(d.grad_hidden);
  p.grad_cell = pointer<Accum>(d.grad_cell);
  p.grad_hidden_0 = pointer<Accum>(d.grad_hidden_0);
  p.grad_cell_0 = pointer<Accum>(d.grad_cell_0);
  p.grad_preactivations = pointer<Operand>(d.grad_preactivations);
  p.hidden_before = pointer<Operand>(d.hidden_before);
  p.grad_projection = pointer<Operand>(d.grad_projection);
  p.unprojected = pointer<Operand>(d.unprojected);
  return p;
}

}  // namespace fused_lstm
