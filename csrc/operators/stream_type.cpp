#include "operators/stream_type.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <structmember.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "device/device.h"
#include "device/pool.h"
#include "frozen/stream.h"
#include "operators/frozen.h"

namespace py = pybind11;

namespace fused_lstm {
namespace {

// The interpreter's lock is released for a call that reads so many bytes of weights: some 50
// microseconds at 60 GB/s.
constexpr int64_t kReleaseBytes = 3'000'000;

// Memory for the output of T steps, and the tensor that each call returns. The memory is the
// tensor's too: the tensor may outlive the stream.
class Output {
 public:
  // Of rows [T, B, P]: the tensor is [B, P] if it is of one step, else [B, T, P].
  Output(int64_t T, int64_t B, int64_t P, bool one_step)
      : T_(T), memory_(allocate_pooled({T, B, P}, at::TensorOptions(at::kFloat))) {
    const c10::InferenceMode normal(false);
    const auto keep = [memory = memory_](void*) {};
    void* const data = memory_.mutable_data_ptr();
    const at::TensorOptions options(at::kFloat);
    tensor_ = one_step ? at::from_blob(data, {B, P}, keep, options)
                       : at::from_blob(data, {B, T, P}, {P, B * P, 1}, keep, options);
    object_ = py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor_));
    if (!object_) throw py::error_already_set();
  }

  int64_t steps() const { return T_; }
  float* data() const { return pointer<float>(memory_); }

  // The tensor, for a caller. Autograd sees that it was written.
  PyObject* written() const {
    tensor_.unsafeGetTensorImpl()->bump_version();
    return py::object(object_).release().ptr();
  }

 private:
  int64_t T_;
  at::Tensor memory_, tensor_;
  py::object object_;
};

std::vector<frozen::Layer> layers_of(const std::vector<FrozenLayer>& packed) {
  std::vector<frozen::Layer> layers;
  for (const FrozenLayer& each : packed) layers.push_back(each.layer);
  return layers;
}

class State {
 public:
  State(std::vector<FrozenLayer> packed, int64_t batch_size)
      : packed_(std::move(packed)),
        stream_(layers_of(packed_), batch_size),
        step_(1, batch_size, stream_.output_size(), /*one_step=*/true) {
    for (const FrozenLayer& each : packed_) bytes_ += each.packed.numel();
  }
  State(const State& other)
      : packed_(other.packed_),
        stream_(other.stream_),
        bytes_(other.bytes_),
        step_(1, B(), P(), /*one_step=*/true) {}
  State& operator=(const State&) = delete;

  int64_t B() const { return stream_.batch_size(); }
  int64_t D() const { return stream_.input_size(); }
  int64_t P() const { return stream_.output_size(); }
  int64_t H() const { return stream_.layers().front().shape().hidden_size; }
  int64_t L() const { return static_cast<int64_t>(packed_.size()); }
  frozen::Stream& stream() { return stream_; }

  // Why no call can be made now, or null.
  const char* obstacle() const {
    return busy_ ? "the stream is advancing in another thread; each needs a stream of its own: "
                   "stream.fork()"
                 : nullptr;
  }

  PyObject* step(const float* x) {
    advance(x, step_);
    return step_.written();
  }
  // x: [T, B, D]
  PyObject* sequence(const float* x, int64_t T) {
    if (!sequence_ || sequence_->steps() != T) sequence_.emplace(T, B(), P(), /*one_step=*/false);
    advance(x, *sequence_);
    return sequence_->written();
  }

 private:
  void advance(const float* x, const Output& output) {
    const int64_t T = output.steps();
    if (bytes_ * B() * T < kReleaseBytes) return stream_.advance(x, T, output.data());
    struct Busy {
      bool& flag;
      explicit Busy(bool& its) : flag(its) { flag = true; }
      ~Busy() { flag = false; }
    } const busy(busy_);
    const py::gil_scoped_release release;
    stream_.advance(x, T, output.data());
  }

  std::vector<FrozenLayer> packed_;
  frozen::Stream stream_;
  int64_t bytes_ = 0;  // of all weights
  Output step_;
  std::optional<Output> sequence_;  // of as many steps as the last call
  bool busy_ = false;               // without the lock
};

struct StreamObject {
  PyObject_HEAD vectorcallfunc vectorcall;
  State* state;
};

State& state_of(PyObject* self) { return *reinterpret_cast<StreamObject*>(self)->state; }

// Whether the tensor has memory of its own, on the CPU, which holds its values as they are.
bool is_plain(const at::Tensor& x) {
  using Key = c10::DispatchKey;
  constexpr c10::DispatchKeySet allowed(
      {Key::CPU, Key::AutogradCPU, Key::AutocastCPU, Key::ADInplaceOrView});
  return allowed.has_all(x.key_set());
}

// `object` as a tensor on the CPU, or an exception that says what `name` must be.
at::Tensor tensor_of(const char* name, PyObject* object) {
  TORCH_CHECK_TYPE(THPVariable_Check(object), name, " is a ", Py_TYPE(object)->tp_name,
                   ", must be a tensor");
  const at::Tensor tensor = THPVariable_Unpack(object);
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " is on ", tensor.device(),
                    ", must be on the CPU");
  return tensor;
}

// Likewise, as contiguous float32.
at::Tensor floats_of(const char* name, PyObject* object) {
  const at::Tensor tensor = tensor_of(name, object);
  TORCH_CHECK_TYPE(at::isFloatingType(tensor.scalar_type()), name, " has dtype ",
                   tensor.scalar_type(), ", must be a floating dtype");
  TORCH_CHECK(!tensor.requires_grad() || !at::GradMode::is_enabled(), name,
              " requires grad, but a frozen layer has no gradients; train the layer it was frozen "
              "from and freeze again");
  return tensor.detach().to(at::kFloat).resolve_neg().contiguous();
}

PyObject* fail(const char* message) {
  PyErr_SetString(PyExc_RuntimeError, message);
  return nullptr;
}

// Any tensor of the right shape.
PyObject* converted_call(State& state, PyObject* object) {
  HANDLE_TH_ERRORS
  const at::Tensor x = floats_of("x", object);
  const int64_t B = state.B(), D = state.D();
  const bool sequence = x.dim() == 3 && x.size(1) > 0;
  TORCH_CHECK_VALUE((x.dim() == 2 || sequence) && x.size(0) == B && x.size(-1) == D, "x has shape ",
                    x.sizes(), ", must be [B, D] or [B, T, D] with B = ", B, ", D = ", D,
                    " and one step or more");
  if (!sequence) return state.step(pointer<float>(x));
  const at::Tensor steps = x.transpose(0, 1).contiguous();  // [T, B, D]
  return state.sequence(pointer<float>(steps), x.size(1));
  END_HANDLE_TH_ERRORS
}

// stream(x)
PyObject* call(PyObject* self, PyObject* const* args, size_t flags, PyObject* names) {
  State& state = state_of(self);
  if (PyVectorcall_NARGS(flags) != 1 || (names && PyTuple_GET_SIZE(names) > 0)) {
    PyErr_SetString(PyExc_TypeError, "a stream takes one argument, x");
    return nullptr;
  }
  if (const char* const obstacle = state.obstacle()) return fail(obstacle);
  if (THPVariable_CheckExact(args[0])) {
    const at::Tensor& x = THPVariable_Unpack(args[0]);
    if (x.dim() == 2 && is_plain(x) && x.scalar_type() == at::kFloat && x.is_contiguous() &&
        x.size(0) == state.B() && x.size(1) == state.D() &&
        !(x.requires_grad() && at::GradMode::is_enabled())) {
      return state.step(x.const_data_ptr<float>());
    }
  }
  return converted_call(state, args[0]);
}

// stream.state: copies of h [L, B, P] and c [L, B, H]
PyObject* get_state(PyObject* self, void*) {
  HANDLE_TH_ERRORS
  State& state = state_of(self);
  if (const char* const obstacle = state.obstacle()) return fail(obstacle);
  const at::TensorOptions options(at::kFloat);
  const at::Tensor h = allocate({state.L(), state.B(), state.P()}, options);
  const at::Tensor c = allocate({state.L(), state.B(), state.H()}, options);
  for (int64_t k = 0; k < state.L(); ++k) {
    std::memcpy(pointer<float>(h, k), state.stream().h(k), sizeof(float) * h.stride(0));
    std::memcpy(pointer<float>(c, k), state.stream().c(k), sizeof(float) * c.stride(0));
  }
  return Py_BuildValue("NN", THPVariable_Wrap(h), THPVariable_Wrap(c));
  END_HANDLE_TH_ERRORS
}

int set_state(PyObject* self, PyObject* value, void*) {
  HANDLE_TH_ERRORS
  State& state = state_of(self);
  if (const char* const obstacle = state.obstacle()) {
    fail(obstacle);
    return -1;
  }
  const bool two = value && (PyTuple_Check(value) || PyList_Check(value)) &&
                   PySequence_Fast_GET_SIZE(value) == 2;
  TORCH_CHECK_TYPE(two, "state must be a tuple of the hidden and the cell state");
  const auto read = [&](const char* name, int index, int64_t width) {
    const at::Tensor tensor = floats_of(name, PySequence_Fast_GET_ITEM(value, index));
    const int64_t shape[] = {state.L(), state.B(), width};
    TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef(shape), name, " has shape ", tensor.sizes(),
                      ", must be ", at::IntArrayRef(shape));
    return tensor;
  };
  const at::Tensor h = read("state[0]", 0, state.P()), c = read("state[1]", 1, state.H());
  for (int64_t k = 0; k < state.L(); ++k) {
    std::memcpy(state.stream().h(k), pointer<float>(h, k), sizeof(float) * h.stride(0));
    std::memcpy(state.stream().c(k), pointer<float>(c, k), sizeof(float) * c.stride(0));
  }
  return 0;
  END_HANDLE_TH_ERRORS_RET(-1)
}

PyObject* get_batch_size(PyObject* self, void*) { return PyLong_FromLongLong(state_of(self).B()); }

// stream.reset(mask=None)
PyObject* reset(PyObject* self, PyObject* args, PyObject* names) {
  HANDLE_TH_ERRORS
  static const char* const keywords[] = {"mask", nullptr};
  PyObject* object = Py_None;
  if (!PyArg_ParseTupleAndKeywords(args, names, "|O:reset", const_cast<char**>(keywords),
                                   &object)) {
    return nullptr;
  }
  State& state = state_of(self);
  if (const char* const obstacle = state.obstacle()) return fail(obstacle);
  if (object == Py_None) {
    state.stream().reset(nullptr);
    Py_RETURN_NONE;
  }
  const at::Tensor mask = tensor_of("mask", object).contiguous();
  TORCH_CHECK_VALUE(mask.scalar_type() == at::kBool && mask.dim() == 1 && mask.size(0) == state.B(),
                    "mask is ", mask.scalar_type(), " of shape ", mask.sizes(),
                    ", must be Bool of shape [", state.B(), "]");
  state.stream().reset(mask.const_data_ptr<bool>());
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

PyTypeObject* stream_type = nullptr;  // set once, when the module is made

PyObject* wrap(std::unique_ptr<State> state) {
  auto* const object = PyObject_New(StreamObject, stream_type);
  if (!object) throw py::error_already_set();
  object->vectorcall = call;
  object->state = state.release();
  return reinterpret_cast<PyObject*>(object);
}

// stream.fork()
PyObject* fork(PyObject* self, PyObject*) {
  HANDLE_TH_ERRORS
  const State& state = state_of(self);
  if (const char* const obstacle = state.obstacle()) return fail(obstacle);
  return wrap(std::make_unique<State>(state));
  END_HANDLE_TH_ERRORS
}

PyObject* represent(PyObject* self) {
  const State& state = state_of(self);
  return PyUnicode_FromFormat("Stream(%lld, %lld, layers=%lld, batch_size=%lld)",
                              static_cast<long long>(state.D()), static_cast<long long>(state.P()),
                              static_cast<long long>(state.L()), static_cast<long long>(state.B()));
}

void deallocate(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  delete reinterpret_cast<StreamObject*>(self)->state;
  PyObject_Free(self);
  Py_DECREF(type);
}

constexpr const char* kDocumentation =
    "A sequence, or a batch of B sequences, that goes on from call to call.\n"
    "\n"
    "stream(x) takes the next step, x [B, D], and returns the output [B, P] of the last layer, or\n"
    "the next T steps, [B, T, D], and returns [B, T, P]; float32. The result is a view of the\n"
    "stream's own buffer, which the next call writes. With x contiguous and in float32 a step\n"
    "allocates nothing. Not for two threads at once; fork() gives each its own.";

}  // namespace

void add_stream_type(py::module_& m) {
  static PyMemberDef members[] = {
      {"__vectorcalloffset__", T_PYSSIZET, offsetof(StreamObject, vectorcall), READONLY, nullptr},
      {nullptr, 0, 0, 0, nullptr}};
  static PyGetSetDef properties[] = {
      {"state", get_state, set_state, "Copies of h [L, B, P] and c [L, B, H]; may be set.",
       nullptr},
      {"batch_size", get_batch_size, nullptr, "B.", nullptr},
      {nullptr, nullptr, nullptr, nullptr, nullptr}};
  static PyMethodDef methods[] = {
      {"reset", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(reset)),
       METH_VARARGS | METH_KEYWORDS,
       "reset(mask=None): zero state for the sequences where mask [B] is True, or for all."},
      {"fork", fork, METH_NOARGS, "fork(): a stream of its own that goes on from the same state."},
      {nullptr, nullptr, 0, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
                                {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                {Py_tp_repr, reinterpret_cast<void*>(represent)},
                                {Py_tp_members, members},
                                {Py_tp_getset, properties},
                                {Py_tp_methods, methods},
                                {Py_tp_doc, const_cast<char*>(kDocumentation)},
                                {0, nullptr}};
  static PyType_Spec spec = {
      "fused_lstm._C.Stream", sizeof(StreamObject), 0,
      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  stream_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  if (!stream_type) throw py::error_already_set();
  m.add_object("Stream", reinterpret_cast<PyObject*>(stream_type));
}

py::object make_stream(const std::vector<at::Tensor>& packed, int64_t batch_size) {
  return py::reinterpret_steal<py::object>(
      wrap(std::make_unique<State>(frozen_layers(packed), batch_size)));
}

}  // namespace fused_lstm
