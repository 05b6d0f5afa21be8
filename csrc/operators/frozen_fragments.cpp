#include "operators/frozen_fragments.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <iterator>

#include "operators/checks.h"

namespace fused_lstm {
namespace {

// The calls that have fragments: the plan has other kernels for them, or the same.
struct Call {
  int64_t T, B;
};
constexpr Call kCalls[] = {{1, 1}, {100, 1}, {100, 16}};
constexpr size_t kFragments = std::size(kCalls);

const Device& device_of(at::Device device) {
#ifdef FUSED_LSTM_WITH_CUDA
  if (device.is_cuda()) return cuda_device();
#endif
  TORCH_CHECK(device.is_cpu(), "a frozen layer is on ", device,
              ", must be on the CPU or, where fused_lstm was built with CUDA, on a CUDA device");
  return cpu_device();
}

struct FragmentLayer {
  at::TensorList weights, fragments;
};

std::vector<FragmentLayer> layers_of(at::TensorList packed) {
  size_t weights = 0;
  while (weights < packed.size() && packed[weights].scalar_type() != at::kByte) ++weights;
  const size_t each = weights + kFragments;
  TORCH_CHECK(weights > 0 && packed.size() % each == 0, "packed has ", packed.size(),
              " tensors, must have the weights of each layer, each followed by ", kFragments,
              " of uint8");
  std::vector<FragmentLayer> layers;
  for (size_t first = 0; first < packed.size(); first += each) {
    const FragmentLayer layer = {packed.slice(first, weights),
                                 packed.slice(first + weights, kFragments)};
    for (const at::Tensor& fragments : layer.fragments) {
      TORCH_CHECK(fragments.scalar_type() == at::kByte && fragments.is_contiguous() &&
                      fragments.device() == packed[0].device(),
                  "the fragments of layer ", layers.size(), " are ", fragments.scalar_type(),
                  " on ", fragments.device(), ", must be contiguous uint8 on ", packed[0].device());
    }
    layers.push_back(layer);
  }
  return layers;
}

at::Tensor in_type(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

}  // namespace

bool frozen_keeps_fragments(at::Device device) { return device_of(device).keeps_fragments(); }

std::vector<at::Tensor> frozen_pack_fragments(const std::vector<at::Tensor>& weights,
                                              int64_t directions) {
  const at::NoGradGuard no_grad;
  const frozen::Shape shape = frozen_shape(weights, directions);
  const at::Tensor& example = weights.front();
  Sizes sizes = {};
  sizes.D = shape.input_size;
  sizes.H = shape.hidden_size;
  sizes.P = shape.projection_size;
  sizes.directions = directions;
  sizes.biases = shape.biases;
  sizes.projected = shape.projected;
  std::vector<Weights> all;
  std::vector<at::Tensor> packed;
  for (int64_t d = 0; d < directions; ++d) {
    Weights w = weights_of(weights, sizes, d);
    for (const at::Tensor* const matrix : {&w.ih, &w.hh, &w.hr}) {
      if (!matrix->defined()) continue;
      TORCH_CHECK(matrix->device() == example.device(), "a weight of shape ", matrix->sizes(),
                  " is on ", matrix->device(), ", must be on weight_ih's device ",
                  example.device());
    }
    split_biases(w, example.scalar_type());
    for (at::Tensor* const tensor : {&w.ih, &w.hh, &w.bias_ih, &w.bias_hh, &w.hr}) {
      if (!tensor->defined()) continue;
      *tensor = tensor->clone(at::MemoryFormat::Contiguous);
      packed.push_back(*tensor);
    }
    all.push_back(w);
  }
  const Device& device = device_of(example.device());
  for (const Call& call : kCalls) {
    sizes.T = call.T;
    sizes.B = call.B;
    sizes.N = call.T * call.B;
    at::Tensor fragments = device.fragments(sizes, all);
    const auto first = packed.begin() + static_cast<ptrdiff_t>(weights.size());
    const auto is_same = [&](const at::Tensor& other) {
      return other.sizes() == fragments.sizes();
    };
    if (!fragments.defined() || std::any_of(first, packed.end(), is_same)) {
      fragments = allocate({0}, example.options().dtype(at::kByte));
    }
    packed.push_back(fragments);
  }
  return packed;
}

FrozenResult frozen_forward_fragments(const Device& device, const at::Tensor& input,
                                      const OptionalTensor& h_0, const OptionalTensor& c_0,
                                      at::TensorList packed, int64_t hidden_size, int64_t proj_size,
                                      bool bidirectional, const LayerOptions& options,
                                      const FinalStates& final_states) {
  const std::vector<FragmentLayer> layers = layers_of(packed);
  const at::ScalarType dtype = packed[0].scalar_type();
  Sequence sequence = {};
  Sizes& s = sequence.sizes;
  read_steps(input, options, sequence);
  s.H = hidden_size;
  s.P = proj_size > 0 ? proj_size : hidden_size;
  s.directions = bidirectional ? 2 : 1;
  check_frozen_dtype("input", input);
  for (size_t k = 0; k < layers.size(); ++k) {
    const at::Tensor& hh = layers[k].weights[1];
    const int64_t must_be[] = {4 * s.H, s.P};
    TORCH_CHECK(hh.sizes() == at::IntArrayRef(must_be), "weight_hh of layer ", k, " has shape ",
                hh.sizes(), ", must be ", at::IntArrayRef(must_be));
  }

  const int64_t states = static_cast<int64_t>(layers.size()) * s.directions;
  const std::vector<int64_t> h_shape = {states, s.B, s.P}, c_shape = {states, s.B, s.H};
  const auto initial = [&](const char* name, const OptionalTensor& given, at::IntArrayRef shape,
                           bool or_float) -> at::Tensor {
    if (!given) return {};
    check_place(name, *given, shape, input);
    check_frozen_dtype(name, *given);
    if (given->scalar_type() == dtype) return *given;
    return in_type(*given, or_float ? at::kFloat : dtype);
  };
  const at::Tensor h = initial("h_0", h_0, h_shape, /*or_float=*/false);
  const at::Tensor c = initial("c_0", c_0, c_shape, /*or_float=*/true);
  const at::ScalarType storage = input.scalar_type();
  const at::ScalarType cells = c_0 ? c10::promoteTypes(storage, c_0->scalar_type()) : storage;
  FinalStates all = final_states;
  const at::TensorOptions result = input.options();
  if (!all.h_n.defined()) all.h_n = allocate(h_shape, result.dtype(dtype));
  if (!all.c_n.defined()) {
    all.c_n = allocate(c_shape, result.dtype(cells == dtype ? dtype : at::kFloat));
  }
  const auto of_layer = [&](const at::Tensor& state, size_t k) {
    if (!state.defined() || layers.size() == 1) return state;
    return state.narrow(0, static_cast<int64_t>(k) * s.directions, s.directions);
  };

  at::Tensor x = in_type(input, dtype);
  for (size_t k = 0; k < layers.size(); ++k) {
    const FragmentLayer& layer = layers[k];
    const at::Tensor h_k = of_layer(h, k), c_k = of_layer(c, k);
    const LayerArguments arguments = {x, h_k, c_k, layer.weights, options, layer.fragments};
    x = std::get<0>(layer_forward(device, arguments, /*keep_states=*/false,
                                  {of_layer(all.h_n, k), of_layer(all.c_n, k)}));
  }
  return {in_type(x, storage), in_type(all.h_n, storage), in_type(all.c_n, cells)};
}

at::Tensor frozen_step(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                       const at::Tensor& h_n, const at::Tensor& c_n,
                       const std::vector<at::Tensor>& packed, int64_t hidden_size,
                       int64_t proj_size) {
  const at::NoGradGuard no_grad;
  return std::get<0>(frozen_forward_fragments(device_of(input.device()), input.unsqueeze(0), h_0,
                                              c_0, packed, hidden_size, proj_size,
                                              /*bidirectional=*/false, {}, {h_n, c_n}))
      .squeeze(0);
}

}  // namespace fused_lstm
