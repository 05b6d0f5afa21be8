#include "operators/frozen.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <cstring>
#include <optional>
#include <stdexcept>

#include "device/device.h"
#include "device/pool.h"
#include "operators/checks.h"
#include "operators/operators.h"

namespace fused_lstm {
namespace {

using frozen::Format;

constexpr int64_t kAlignment = 64;  // of packed bytes

Format format_named(const std::string& name) {
  for (const Format format : {Format::float32, Format::bfloat16, Format::int8}) {
    if (name == frozen::format_name(format)) return format;
  }
  TORCH_CHECK_VALUE(false, "format is '", name, "', must be float32, bfloat16 or int8");
}

at::ScalarType dtype_of(Format format) {
  return format == Format::float32    ? at::kFloat
         : format == Format::bfloat16 ? at::kBFloat16
                                      : at::kChar;
}

void check_tensor(const std::string& name, const at::Tensor& tensor, at::IntArrayRef shape,
                  at::ScalarType dtype) {
  TORCH_CHECK(tensor.sizes() == shape, name, " has shape ", tensor.sizes(), ", must be ", shape);
  TORCH_CHECK(tensor.scalar_type() == dtype, name, " has dtype ", tensor.scalar_type(),
              ", must be ", dtype);
  TORCH_CHECK(tensor.device().is_cpu() && tensor.is_contiguous(), name,
              " must be contiguous and on the CPU");
}

at::Tensor allocate_bytes(int64_t bytes) {
  return allocate_pooled({bytes}, at::TensorOptions(at::kByte));
}

// The weights of each direction as tensors, in the order of frozen_pack.
struct Unpacked {
  std::vector<at::Tensor> weights, scales;
};

Unpacked unpack(const frozen::Layer& layer) {
  const frozen::Shape& s = layer.shape();
  const at::TensorOptions options(dtype_of(layer.format())), floats(at::kFloat);
  Unpacked all;
  std::array<frozen::MutableWeights, 2> to = {};
  const auto matrix = [&](int64_t rows, int64_t columns) -> frozen::MutableMatrix {
    all.weights.push_back(allocate({rows, columns}, options));
    float* scales = nullptr;
    if (layer.format() == Format::int8) {
      all.scales.push_back(allocate({rows}, floats));
      scales = pointer<float>(all.scales.back());
    }
    return {all.weights.back().data_ptr(), scales};
  };
  const auto bias = [&] {
    all.weights.push_back(allocate({4 * s.hidden_size}, floats));
    return pointer<float>(all.weights.back());
  };
  for (int64_t d = 0; d < s.directions; ++d) {
    frozen::MutableWeights& w = to[d];
    w.ih = matrix(4 * s.hidden_size, s.input_size);
    w.hh = matrix(4 * s.hidden_size, s.projection_size);
    if (s.biases) {
      w.bias_ih = bias();
      w.bias_hh = bias();
    }
    if (s.projected) w.hr = matrix(s.projection_size, s.hidden_size);
  }
  layer.unpack(to);
  return all;
}

// `packed` as a layer; what is wrong with it is an error that names it.
frozen::Layer read_layer(const std::string& name, const at::Tensor& packed) {
  TORCH_CHECK(packed.dim() == 1, name, " has shape ", packed.sizes(), ", must be [bytes]");
  check_tensor(name, packed, packed.sizes(), at::kByte);
  try {
    return {packed.const_data_ptr(), packed.numel()};
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK(false, name, ": ", error.what());
  }
}

// A layer on the bytes of `packed`, or on a copy of them that this processor can run.
FrozenLayer runnable(const std::string& name, at::Tensor packed) {
  const frozen::Layer layer = read_layer(name, packed);
  if (!layer.fits()) {
    TORCH_WARN_ONCE(
        "a frozen layer was packed for another processor and is packed again in each call: load "
        "its state_dict on this machine, or freeze again");
    const Unpacked all = unpack(layer);
    packed = frozen_pack(all.weights, all.scales, frozen::format_name(layer.format()),
                         layer.shape().directions);
  } else if (reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % kAlignment != 0) {
    const at::Tensor copy = allocate_bytes(packed.numel());
    std::memcpy(copy.mutable_data_ptr(), packed.const_data_ptr(), packed.numel());
    packed = copy;
  } else {
    return {packed, layer};
  }
  return {packed, frozen::Layer(packed.const_data_ptr(), packed.numel())};
}

at::Tensor in_float(const at::Tensor& tensor) {
  return (tensor.scalar_type() == at::kFloat ? tensor : tensor.to(at::kFloat)).contiguous();
}

at::Tensor in_type(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

// A state [L * directions, B, width] in float32; undefined unless it is given.
at::Tensor initial_state(const char* name, const OptionalTensor& given, at::IntArrayRef shape,
                         const at::Tensor& input) {
  if (!given) return {};
  check_place(name, *given, shape, input);
  check_frozen_dtype(name, *given);
  return in_float(*given);
}

#if AT_PARALLEL_OPENMP
constexpr bool kConcurrentThreads = true;  // all threads of a loop run, so a barrier is safe
#else
constexpr bool kConcurrentThreads = false;
#endif

const frozen::ParallelFor kParallelFor = {
    [](int64_t n, const void* body, void (*call)(const void*, int64_t, int64_t)) {
      at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { call(body, begin, end); });
    }};

void check_layers(const std::vector<FrozenLayer>& layers, const Sizes& s, bool projected) {
  TORCH_CHECK(!layers.empty(), "packed is empty, must have a tensor for each layer");
  int64_t features = s.D;
  for (size_t k = 0; k < layers.size(); ++k) {
    const frozen::Shape& shape = layers[k].layer.shape();
    const auto check = [&](const char* what, int64_t is, int64_t must_be) {
      TORCH_CHECK(is == must_be, "packed[", k, "] has ", what, " ", is, ", must have ", must_be);
    };
    check("hidden_size", shape.hidden_size, s.H);
    check("proj_size", shape.projected ? shape.projection_size : 0, projected ? s.P : 0);
    check("directions", shape.directions, s.directions);
    if (k == 0) {
      TORCH_CHECK(features == shape.input_size, "input has ", features, " features, must have ",
                  shape.input_size);
    }
    check("input_size", shape.input_size, features);
    features = s.directions * s.P;
  }
}

FrozenResult without_gradients(const at::Tensor& input, const OptionalTensor& h_0,
                               const OptionalTensor& c_0, at::TensorList packed,
                               int64_t hidden_size, int64_t proj_size, bool bidirectional,
                               const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                               const OptionalTensor& reset, bool reset_to_initial) {
  const auto check = [](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK(!tensor.requires_grad() || !at::GradMode::is_enabled(), name,
                " requires grad, but a frozen layer has no gradients; train the layer it was "
                "frozen from and freeze again");
  };
  check("input", input);
  if (h_0) check("h_0", *h_0);
  if (c_0) check("c_0", *c_0);
  static const auto op = find_operator<FrozenSignature>("fused_lstm::frozen_lstm");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(input, h_0, c_0, packed, hidden_size, proj_size, bidirectional, batch_sizes,
                 lengths, reset, reset_to_initial);
}

}  // namespace

void check_frozen_dtype(const char* name, const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, name,
              " has dtype ", dtype,
              ", must be float32, bfloat16 or float16: a frozen layer computes in float32");
}

frozen::Shape frozen_shape(at::TensorList weights, int64_t directions) {
  TORCH_CHECK(directions == 1 || directions == 2, "directions is ", directions, ", must be 1 or 2");
  const size_t each = weights.size() / directions;
  TORCH_CHECK(weights.size() % directions == 0 && each >= 2 && each <= 5, "weights has ",
              weights.size(), " tensors, must have 2 to 5 for each of ", directions, " directions");
  TORCH_CHECK(weights[0].dim() == 2 && weights[1].dim() == 2,
              "weight_ih and weight_hh have shapes ", weights[0].sizes(), " and ",
              weights[1].sizes(), ", must be [4H, D] and [4H, P]");
  frozen::Shape shape = {};
  shape.biases = each >= 4;
  shape.projected = each % 2 == 1;
  shape.directions = directions;
  shape.input_size = weights[0].size(1);
  shape.hidden_size = weights[0].size(0) / 4;
  shape.projection_size = weights[1].size(1);
  return shape;
}

at::Tensor frozen_pack(const std::vector<at::Tensor>& weights,
                       const std::vector<at::Tensor>& scales, const std::string& format,
                       int64_t directions) {
  const Format to = format_named(format);
  const frozen::Shape shape = frozen_shape(weights, directions);
  const size_t each = weights.size() / directions;
  size_t next_scale = 0;
  const auto matrix = [&](const char* name, const at::Tensor& tensor,
                          at::IntArrayRef sizes) -> frozen::Matrix {
    const bool rounded = tensor.scalar_type() == at::kFloat;
    check_tensor(name, tensor, sizes, rounded ? at::kFloat : dtype_of(to));
    if (rounded || to != Format::int8) {
      return {tensor.const_data_ptr(), nullptr, rounded ? Format::float32 : to};
    }
    TORCH_CHECK(next_scale < scales.size(), name, " is int8, but its scale is missing");
    const at::Tensor& scale = scales[next_scale++];
    check_tensor(std::string(name) + "_scale", scale, sizes.slice(0, 1), at::kFloat);
    return {tensor.const_data_ptr(), scale.const_data_ptr<float>(), Format::int8};
  };
  const int64_t H = shape.hidden_size, D = shape.input_size, P = shape.projection_size;
  std::array<frozen::Weights, 2> all = {};
  for (int64_t d = 0; d < directions; ++d) {
    const at::Tensor* const w = weights.data() + d * each;
    all[d].ih = matrix("weight_ih", w[0], {4 * H, D});
    all[d].hh = matrix("weight_hh", w[1], {4 * H, P});
    if (shape.biases) {
      check_tensor("bias_ih", w[2], {4 * H}, at::kFloat);
      check_tensor("bias_hh", w[3], {4 * H}, at::kFloat);
      all[d].bias_ih = w[2].const_data_ptr<float>();
      all[d].bias_hh = w[3].const_data_ptr<float>();
    }
    if (shape.projected) all[d].hr = matrix("weight_hr", w[each - 1], {P, H});
  }
  try {
    const at::Tensor packed = allocate_bytes(frozen::packed_bytes(shape, to));
    frozen::pack(shape, to, all, packed.mutable_data_ptr());
    return packed;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK(false, error.what());
  }
}

std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> frozen_unpack(
    const at::Tensor& packed) {
  Unpacked all = unpack(read_layer("packed", packed));
  return {std::move(all.weights), std::move(all.scales)};
}

std::vector<FrozenLayer> frozen_layers(at::TensorList packed) {
  cpu_machine();  // how gates divide is chosen with it
  std::vector<FrozenLayer> layers;
  layers.reserve(packed.size());
  for (size_t k = 0; k < packed.size(); ++k) {
    layers.push_back(runnable("packed[" + std::to_string(k) + "]", packed[k]));
  }
  return layers;
}

FrozenResult frozen_forward(const at::Tensor& input, const OptionalTensor& h_0,
                            const OptionalTensor& c_0, at::TensorList packed, int64_t hidden_size,
                            int64_t proj_size, bool bidirectional, const LayerOptions& options) {
  Sequence sequence = {};
  Sizes& s = sequence.sizes;
  read_steps(input, options, sequence);
  s.H = hidden_size;
  s.P = proj_size > 0 ? proj_size : hidden_size;
  s.directions = bidirectional ? 2 : 1;
  check_frozen_dtype("input", input);
  const std::vector<FrozenLayer> layers = frozen_layers(packed);
  check_layers(layers, s, proj_size > 0);
  read_boundaries(input, options, sequence);

  const int64_t states = static_cast<int64_t>(layers.size()) * s.directions;
  const at::TensorOptions floats(at::kFloat);
  const at::Tensor h_n = allocate({states, s.B, s.P}, floats);
  const at::Tensor c_n = allocate({states, s.B, s.H}, floats);
  const at::Tensor h = initial_state("h_0", h_0, h_n.sizes(), input);
  const at::Tensor c = initial_state("c_0", c_0, c_n.sizes(), input);
  std::vector<int64_t> shape(input.sizes().begin(), input.sizes().end());
  shape.back() = s.directions * s.P;

  at::Tensor x = in_float(input);
  for (size_t k = 0; k < layers.size() && s.N > 0; ++k) {
    const frozen::Layer& layer = layers[k].layer;
    const bool last = k + 1 == layers.size();
    const at::Tensor output = last ? allocate(shape, floats) : allocate_pooled(shape, floats);
    const int64_t first = static_cast<int64_t>(k) * s.directions;
    const frozen::Batch batch = {s.T,
                                 s.B,
                                 sequence.steps(false).offsets,
                                 sequence.boundaries(),
                                 pointer<float>(x),
                                 pointer<float>(h, first),
                                 pointer<float>(c, first),
                                 pointer<float>(output),
                                 pointer<float>(h_n, first),
                                 pointer<float>(c_n, first)};
    const cpu::Slices slices =
        frozen::plan_slices(layer, batch, at::get_num_threads(), kConcurrentThreads, cpu_machine());
    const at::Tensor scratch = allocate_bytes(layer.scratch_bytes(s.T, s.B, slices));
    layer.forward(batch, slices, scratch.mutable_data_ptr(), kParallelFor);
    x = output;
  }
  if (s.N == 0) x = allocate(shape, floats);
  const at::ScalarType storage = input.scalar_type();
  const at::ScalarType cells = c_0 ? c10::promoteTypes(storage, c_0->scalar_type()) : storage;
  return {in_type(x, storage), in_type(h_n, storage), in_type(c_n, cells)};
}

TORCH_LIBRARY_IMPL(fused_lstm, Autograd, m) { m.impl("frozen_lstm", without_gradients); }

}  // namespace fused_lstm
