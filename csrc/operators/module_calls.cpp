#include "operators/module_calls.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/record_function.h>
#include <c10/util/SmallVector.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <utility>

#include "device/device.h"
#include "device/torch_private.h"
#include "operators/frozen.h"
#include "operators/operators.h"

namespace fused_lstm {
namespace {

using Tensors = c10::SmallVector<at::Tensor, 8>;
using State = std::pair<at::Tensor, at::Tensor>;  // h and c

// Reads the arguments of a call, and remembers what makes it other than plain.
class Reader {
 public:
  at::Tensor tensor(PyObject* object) {
    if (object == nullptr || !THPVariable_CheckExact(object)) {  // a subclass has its own semantics
      plain_ = false;
      return {};
    }
    const at::Tensor& tensor = THPVariable_Unpack(object);
    keys_ = keys_ | tensor.key_set();
    plain_ = plain_ && !torch_private::has_tangent(tensor, 0);
    return tensor;
  }
  // The tensors of a tuple or list of two; undefined for None.
  State state(PyObject* hx) {
    if (hx == Py_None) return {};
    plain_ = plain_ && (PyTuple_CheckExact(hx) || PyList_CheckExact(hx)) &&
             PySequence_Fast_GET_SIZE(hx) == 2;
    if (!plain_) return {};
    return {tensor(PySequence_Fast_GET_ITEM(hx, 0)), tensor(PySequence_Fast_GET_ITEM(hx, 1))};
  }
  // What the dict `parameters` has under `name`; not plain if that is absent or None.
  PyObject* parameter(PyObject* parameters, PyObject* name) {
    plain_ = plain_ && PyDict_CheckExact(parameters);
    return plain_ ? PyDict_GetItem(parameters, name) : nullptr;
  }
  // The list `weights`, if it holds what `parameters` has under `names`.
  Tensors weights(PyObject* weights, PyObject* names, PyObject* parameters) {
    plain_ = plain_ && PyList_CheckExact(weights) && PyList_CheckExact(names) &&
             PyList_GET_SIZE(weights) == PyList_GET_SIZE(names);
    Tensors tensors;
    for (Py_ssize_t i = 0; plain_ && i < PyList_GET_SIZE(weights); ++i) {
      PyObject* weight = PyList_GET_ITEM(weights, i);
      plain_ = parameter(parameters, PyList_GET_ITEM(names, i)) == weight;
      tensors.push_back(tensor(weight));
    }
    return tensors;
  }
  int64_t integer(PyObject* object) {
    const int64_t value = PyLong_AsLongLong(object);
    return failed() ? 0 : value;
  }
  bool truth(PyObject* object) {
    const bool value = PyObject_IsTrue(object) == 1;
    return !failed() && value;
  }
  // The tensors of a list.
  Tensors tensors(PyObject* list) {
    plain_ = plain_ && PyList_CheckExact(list);
    Tensors tensors;
    for (Py_ssize_t i = 0; plain_ && i < PyList_GET_SIZE(list); ++i) {
      tensors.push_back(tensor(PyList_GET_ITEM(list, i)));
    }
    return tensors;
  }
  // Whether the dispatcher would hand the call to autograd, if it records, to the kernel of a CPU,
  // and to nothing else, and Python would not interfere.
  bool plain() const {
    using Key = c10::DispatchKey;
    // Every thread includes BackendSelect, for which the operators have no kernel.
    constexpr c10::DispatchKeySet allowed(
        {Key::CPU, Key::AutogradCPU, Key::ADInplaceOrView, Key::BackendSelect});
    const c10::DispatchKeySet keys = torch_private::with_modes(keys_);
    return plain_ && allowed.has_all(keys) && !at::hasCallbacks() &&
           (keys.has_any(c10::autograd_dispatch_keyset) || !at::GradMode::is_enabled()) &&
           !torch_private::function_mode_enabled();
  }

 private:
  bool failed() {
    if (!PyErr_Occurred()) return false;
    PyErr_Clear();
    plain_ = false;
    return true;
  }

  c10::DispatchKeySet keys_;
  bool plain_ = true;
};

// The kernels refuse other dtypes, but complex numbers have another way.
bool computes(const at::Tensor& input) {
  return at::isFloatingType(input.scalar_type()) && input.numel() > 0;
}

struct Lstm {
  int64_t num_layers, D, H, P;
  bool bidirectional, batch_first, recompute;

  int64_t directions() const { return bidirectional ? 2 : 1; }

  // Whether the shapes are right: input [T, B, D], [B, T, D] if batch_first, or [T, D]; the state
  // [num_layers * directions, B, P] and [num_layers * directions, B, H], without B for [T, D].
  bool takes(const at::Tensor& input, const State& state) const {
    if ((input.dim() != 2 && input.dim() != 3) || input.size(-1) != D) return false;
    if (!state.first.defined()) return true;
    c10::SmallVector<int64_t, 3> shape = {num_layers * directions()};
    if (input.dim() == 3) shape.push_back(input.size(batch_first ? 0 : 1));
    shape.push_back(P);
    if (state.first.sizes() != at::IntArrayRef(shape)) return false;
    shape.back() = H;
    return state.second.sizes() == at::IntArrayRef(shape);
  }

  // The output, laid out as the input, and the final state.
  std::pair<at::Tensor, State> operator()(const at::Tensor& input, State state,
                                          at::TensorList weights) const {
    const bool unbatched = input.dim() == 2;
    at::Tensor x = unbatched ? input.unsqueeze(1) : batch_first ? input.transpose(0, 1) : input;
    const bool zero = !state.first.defined();
    if (unbatched && !zero) {
      state = {state.first.unsqueeze(1), state.second.unsqueeze(1)};
    }
    const size_t each = weights.size() / num_layers;
    Tensors h_n, c_n;
    for (int64_t k = 0; k < num_layers; ++k) {
      const auto of_layer = [&](const at::Tensor& all) {
        if (zero || num_layers == 1) return all;
        return all.slice(0, k * directions(), (k + 1) * directions());
      };
      const at::Tensor h_0 = of_layer(state.first), c_0 = of_layer(state.second);
      auto [output, h, c, cells, gates] =
          recorded_layer({x, h_0, c_0, weights.slice(k * each, each), {}},
                         /*keep_states=*/false, recompute);
      x = std::move(output);
      h_n.push_back(std::move(h));
      c_n.push_back(std::move(c));
    }
    state = num_layers == 1 ? State(h_n[0], c_n[0]) : State(at::cat(h_n), at::cat(c_n));
    if (unbatched) return {x.squeeze(1), {state.first.squeeze(1), state.second.squeeze(1)}};
    return {batch_first ? x.transpose(0, 1) : x, std::move(state)};
  }
};

// body() with the interpreter's lock released, and its result as `wrap` makes a Python object of
// it. None for an error of torch, which the module finds again; one of Python, as a hook of
// saved tensors may raise, passes through.
template <class Body, class Wrap>
PyObject* run(const Body& body, const Wrap& wrap) {
  HANDLE_TH_ERRORS
  try {
    decltype(body()) result;
    {
      const pybind11::gil_scoped_release release;
      result = body();
    }
    return wrap(result);
  } catch (const c10::Error&) {
    Py_RETURN_NONE;
  }
  END_HANDLE_TH_ERRORS
}

// output, (h_n, c_n)
PyObject* wrap_result(const std::pair<at::Tensor, State>& result) {
  const auto& [output, final] = result;
  return Py_BuildValue("N(NN)", THPVariable_Wrap(output), THPVariable_Wrap(final.first),
                       THPVariable_Wrap(final.second));
}

bool is_zero(PyObject* reset_to) {
  return PyUnicode_Check(reset_to) && PyUnicode_CompareWithASCIIString(reset_to, "zero") == 0;
}

// plain_lstm(input, hx, reset_to, weights, names, parameters, num_layers, input_size, hidden_size,
//            proj_size, bidirectional, batch_first, recompute): attributes of an nn.RNNBase
PyObject* plain_lstm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 13) return PyErr_Format(PyExc_TypeError, "plain_lstm takes 13 arguments");
  Reader read;
  const at::Tensor input = read.tensor(args[0]);
  const State state = read.state(args[1]);
  const bool reset_to_zero = is_zero(args[2]);
  const Tensors weights = read.weights(args[3], args[4], args[5]);
  const int64_t layers = read.integer(args[6]);
  const int64_t D = read.integer(args[7]), H = read.integer(args[8]), P = read.integer(args[9]);
  const Lstm lstm = {layers,
                     D,
                     H,
                     P == 0 ? H : P,
                     read.truth(args[10]),
                     read.truth(args[11]),
                     read.truth(args[12])};
  if (!read.plain() || !reset_to_zero || layers < 1 || weights.empty() || !computes(input) ||
      !lstm.takes(input, state)) {
    Py_RETURN_NONE;
  }
  return run([&] { return lstm(input, state, weights); }, wrap_result);
}

// plain_cell(input, hx, parameters, bias, input_size, hidden_size)
PyObject* plain_cell(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 6) return PyErr_Format(PyExc_TypeError, "plain_cell takes 6 arguments");
  static PyObject* const names[] = {
      PyUnicode_InternFromString("weight_ih"), PyUnicode_InternFromString("weight_hh"),
      PyUnicode_InternFromString("bias_ih"), PyUnicode_InternFromString("bias_hh")};
  Reader read;
  const at::Tensor input = read.tensor(args[0]);
  State state = read.state(args[1]);
  Tensors weights;
  for (int i = 0; i < (read.truth(args[3]) ? 4 : 2); ++i) {
    weights.push_back(read.tensor(read.parameter(args[2], names[i])));
  }
  const int64_t D = read.integer(args[4]), H = read.integer(args[5]);
  if (!read.plain() || !computes(input) || input.dim() != 2 || input.size(1) != D) {
    Py_RETURN_NONE;
  }
  const int64_t shape[] = {input.size(0), H};
  if (!state.first.defined()) {
    state.first = state.second = allocate_zeros(shape, input.options());
  }
  for (const at::Tensor& x : {state.first, state.second}) {
    // The cell has results of another dtype than the layer where a state is wider
    if (x.sizes() != at::IntArrayRef(shape) || x.scalar_type() != input.scalar_type())
      Py_RETURN_NONE;
  }
  return run(
      [&]() -> State {
        auto [h_n, c_n, cells, gates] =
            recorded_cell(input, state.first, state.second, weights, /*keep_states=*/false);
        return {h_n, c_n};
      },
      [](const State& next) {
        return Py_BuildValue("NN", THPVariable_Wrap(next.first), THPVariable_Wrap(next.second));
      });
}

// plain_frozen(input, hx, reset_to, packed, input_size, hidden_size, proj_size, bidirectional,
//              batch_first)
PyObject* plain_frozen(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 9) return PyErr_Format(PyExc_TypeError, "plain_frozen takes 9 arguments");
  Reader read;
  const at::Tensor input = read.tensor(args[0]);
  const State state = read.state(args[1]);
  const bool reset_to_zero = is_zero(args[2]);
  const Tensors packed = read.tensors(args[3]);
  const int64_t D = read.integer(args[4]), H = read.integer(args[5]), P = read.integer(args[6]);
  const Lstm lstm = {static_cast<int64_t>(packed.size()),
                     D,
                     H,
                     P == 0 ? H : P,
                     read.truth(args[7]),
                     read.truth(args[8]),
                     /*recompute=*/false};
  const auto records = [](const at::Tensor& x) { return x.defined() && x.requires_grad(); };
  if (!read.plain() || !reset_to_zero || packed.empty() || !computes(input) ||
      !lstm.takes(input, state) ||
      (at::GradMode::is_enabled() &&
       (records(input) || records(state.first) || records(state.second)))) {
    Py_RETURN_NONE;
  }
  return run(
      [&]() -> std::pair<at::Tensor, State> {
        const auto batched = [&](const at::Tensor& x) {
          return input.dim() == 2 ? x.unsqueeze(1) : x;
        };
        const auto optional = [&](const at::Tensor& x) {
          return x.defined() ? OptionalTensor(batched(x)) : std::nullopt;
        };
        const bool transposed = lstm.batch_first && input.dim() == 3;
        auto [output, h, c] = frozen_forward(transposed ? input.transpose(0, 1) : batched(input),
                                             optional(state.first), optional(state.second), packed,
                                             H, P, lstm.bidirectional, {});
        if (input.dim() == 2) return {output.squeeze(1), {h.squeeze(1), c.squeeze(1)}};
        return {transposed ? output.transpose(0, 1) : output, {h, c}};
      },
      wrap_result);
}

PyCFunction method(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

PyMethodDef module_calls[] = {{"plain_lstm", method(plain_lstm), METH_FASTCALL, nullptr},
                              {"plain_cell", method(plain_cell), METH_FASTCALL, nullptr},
                              {"plain_frozen", method(plain_frozen), METH_FASTCALL, nullptr},
                              {nullptr, nullptr, 0, nullptr}};

}  // namespace fused_lstm
