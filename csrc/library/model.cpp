#include "library/model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "library/error.h"
#include "library/safetensors.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fused_lstm::library {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = 2 << 20;
// What rounds to bfloat16's infinity from here on
constexpr float kBFloat16Overflow = 0x1.ffp127f;

[[noreturn]] void fail(const std::string& message) { throw Error(FL_BAD_MODEL, message); }

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

bool is_float(Dtype dtype) { return dtype != Dtype::other && dtype != Dtype::i8; }

template <class Stored, class Convert>
std::vector<float> converted(const Tensor& tensor, const Convert& convert) {
  std::vector<float> values(static_cast<size_t>(tensor.elements));
  for (int64_t i = 0; i < tensor.elements; ++i) {
    Stored stored;
    std::memcpy(&stored, tensor.data + i * static_cast<int64_t>(sizeof(Stored)), sizeof(stored));
    values[i] = convert(stored);
  }
  return values;
}

std::vector<float> floats_of(const Tensor& tensor) {
  switch (tensor.dtype) {
    case Dtype::f16:
      return converted<Half>(tensor, [](Half x) { return load<float>(&x, 1); });
    case Dtype::bf16:
      return converted<BFloat16>(tensor, [](BFloat16 x) { return load<float>(&x, 1); });
    case Dtype::f64:
      // Beyond float32's range the conversion is undefined.
      return converted<double>(tensor, [](double x) {
        return std::abs(x) > 0x1.fffffep127 ? HUGE_VALF : static_cast<float>(x);
      });
    default:
      return converted<float>(tensor, [](float x) { return x; });
  }
}

bool all_below(const std::vector<float>& values, float limit) {
  return std::all_of(values.begin(), values.end(), [&](float x) { return std::abs(x) < limit; });
}

// Whether `name`, without a prefix, is one of an nn.LSTM's, or of an nn.LSTMCell's.
bool is_weight_name(std::string_view name, bool of_cell) {
  const auto cut = [&](std::string_view part) {
    if (name.substr(0, part.size()) != part) return false;
    name.remove_prefix(part.size());
    return true;
  };
  if (!cut("weight_ih") && !cut("weight_hh") && !cut("weight_hr") && !cut("bias_ih") &&
      !cut("bias_hh")) {
    return false;
  }
  if (of_cell) return cut("_scale"), name.empty();
  if (!cut("_l")) return false;
  const size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
  if (digits == 0) return false;
  name.remove_prefix(digits);
  cut("_reverse");
  cut("_scale");
  return name.empty();
}

class Loader {
 public:
  Loader(std::string_view file, const fl_options& options)
      : tensors_(parse_safetensors(file)), used_(tensors_.size()), options_(options) {}

  std::shared_ptr<const Model> load() {
    find_prefix();
    find_sizes();
    check_names();
    model_->format = find_format();
    for (int64_t k = 0; k < layers_; ++k) add_layer(k);
    keep_others();
    return std::move(model_);
  }

 private:
  const Tensor* find(const std::string& name) {
    const auto found = std::lower_bound(
        tensors_.begin(), tensors_.end(), name,
        [](const Tensor& t, const std::string& sought) { return t.name < sought; });
    return found != tensors_.end() && found->name == name ? &*found : nullptr;
  }
  // A name of the LSTM's: "weight_ih" of layer k.
  std::string name_of(const char* kind, int64_t k, int64_t direction) const {
    const std::string name = prefix_ + kind;
    return is_cell_ ? name : name + "_l" + std::to_string(k) + (direction == 1 ? "_reverse" : "");
  }
  const Tensor& use(const std::string& name) {
    const Tensor* const tensor = find(name);
    if (!tensor) fail("the file has no " + quoted(name));
    used_[static_cast<size_t>(tensor - tensors_.data())] = true;
    return *tensor;
  }
  const Tensor& use(const std::string& name, const std::vector<int64_t>& shape) {
    const Tensor& tensor = use(name);
    if (tensor.shape != shape) {
      fail(quoted(name) + " is " + text_of(tensor.shape) + ", must be " + text_of(shape));
    }
    return tensor;
  }

  void find_prefix() {
    struct Found {
      std::string prefix;
      bool is_cell;
    };
    std::vector<Found> found;
    for (const bool is_cell : {false, true}) {
      const std::string_view first = is_cell ? "weight_ih" : "weight_ih_l0";
      for (const Tensor& tensor : tensors_) {
        const std::string_view name = tensor.name;
        if (name.size() < first.size()) continue;
        const std::string_view before = name.substr(0, name.size() - first.size());
        if (name.substr(before.size()) != first) continue;
        if (before.empty() || before.back() == '.') found.push_back({std::string(before), is_cell});
      }
    }
    std::string known;
    for (size_t i = 0; i < found.size() && i < 4; ++i) {
      known += (i ? ", " : "") + quoted(found[i].prefix);
    }
    auto chosen = found.begin();
    if (options_.prefix) {
      chosen = std::find_if(found.begin(), found.end(),
                            [&](const Found& its) { return its.prefix == options_.prefix; });
      if (chosen == found.end()) {
        fail("the file has no LSTM of the prefix " + quoted(options_.prefix) +
             (known.empty() ? ", nor any other" : "; it has " + known));
      }
    }
    if (found.empty()) fail("the file has no LSTM: no tensor is named weight_ih_l0 or weight_ih");
    if (!options_.prefix && found.size() > 1) {
      fail("the file has " + std::to_string(found.size()) + " LSTMs; prefix must be one of " +
           known);
    }
    prefix_ = chosen->prefix;
    is_cell_ = chosen->is_cell;
  }

  // The shape that all layers share, from layer 0's weights.
  void find_sizes() {
    const auto matrix = [&](const char* kind) -> const std::vector<int64_t>& {
      const Tensor& tensor = use(name_of(kind, 0, 0));
      if (tensor.shape.size() != 2 || tensor.shape[0] < 1 || tensor.shape[1] < 1) {
        fail(quoted(tensor.name) + " is " + text_of(tensor.shape) +
             ", must have two dimensions of 1 or more");
      }
      return tensor.shape;
    };
    const std::vector<int64_t>& ih = matrix("weight_ih");
    if (ih[0] % 4 != 0) {
      fail(quoted(name_of("weight_ih", 0, 0)) + " is " + text_of(ih) +
           ", must have four rows for each hidden unit");
    }
    Model& m = *model_;
    m.hidden_size = ih[0] / 4;
    m.input_size = ih[1];
    projected_ = !is_cell_ && find(name_of("weight_hr", 0, 0));
    m.projection_size = projected_ ? matrix("weight_hh")[1] : m.hidden_size;
    m.directions = !is_cell_ && find(name_of("weight_ih", 0, 1)) ? 2 : 1;
    biases_ = find(name_of("bias_ih", 0, 0));
    layers_ = 1;
    while (!is_cell_ && find(name_of("weight_ih", layers_, 0))) ++layers_;
  }

  std::vector<const char*> kinds() const {
    std::vector<const char*> kinds = {"weight_ih", "weight_hh"};
    if (projected_) kinds.push_back("weight_hr");
    if (biases_) kinds.insert(kinds.end(), {"bias_ih", "bias_hh"});
    return kinds;
  }
  std::vector<int64_t> shape_of(std::string_view kind, int64_t k) const {
    const Model& m = *model_;
    const int64_t input = k == 0 ? m.input_size : m.directions * m.projection_size;
    if (kind == "weight_ih") return {4 * m.hidden_size, input};
    if (kind == "weight_hh") return {4 * m.hidden_size, m.projection_size};
    if (kind == "weight_hr") return {m.projection_size, m.hidden_size};
    return {4 * m.hidden_size};
  }
  template <class Body>
  void for_weights(const Body& body) {
    for (int64_t k = 0; k < layers_; ++k) {
      for (int64_t d = 0; d < model_->directions; ++d) {
        for (const char* const kind : kinds()) {
          body(std::string_view(kind), use(name_of(kind, k, d), shape_of(kind, k)));
        }
      }
    }
  }

  // That each layer has what layer 0 has, and that no weight is left over.
  void check_names() {
    for_weights([&](std::string_view kind, const Tensor& tensor) {
      const bool is_bias = kind.substr(0, 4) == "bias";
      if (!is_float(tensor.dtype) && (is_bias || tensor.dtype != Dtype::i8)) {
        fail(quoted(tensor.name) + " is of " + tensor.dtype_name + ", must be of F64, F32, F16" +
             (is_bias ? " or BF16" : ", BF16 or I8"));
      }
      if (tensor.dtype == Dtype::i8) {
        const Tensor& scale = use(tensor.name + "_scale", {tensor.shape[0]});
        if (scale.dtype != Dtype::f32) {
          fail(quoted(scale.name) + " is of " + scale.dtype_name + ", must be of F32");
        }
      }
    });
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const std::string_view name = tensors_[i].name;
      if (used_[i] || name.substr(0, prefix_.size()) != prefix_) continue;
      if (is_weight_name(name.substr(prefix_.size()), is_cell_)) {
        fail(quoted(name) + " belongs to none of the LSTM's layers 0 to " +
             std::to_string(layers_ - 1) + ", or these lack its like");
      }
    }
  }

  frozen::Format find_format() {
    bool all_int8 = true, any_int8 = false, all_bfloat16 = true;
    for_weights([&](std::string_view kind, const Tensor& tensor) {
      if (kind.substr(0, 4) == "bias") return;
      all_int8 &= tensor.dtype == Dtype::i8;
      any_int8 |= tensor.dtype == Dtype::i8;
      all_bfloat16 &= tensor.dtype == Dtype::bf16;
    });
    if (any_int8) {
      if (!all_int8) fail("some of the LSTM's weights are of I8, must be all or none");
      if (options_.format != FL_AS_STORED && options_.format != FL_INT8) {
        throw Error(FL_INVALID_ARGUMENT,
                    "options.format is not FL_INT8, but the file's weights are of I8");
      }
      return frozen::Format::int8;
    }
    if (options_.format == FL_INT8) return frozen::Format::int8;
    if (options_.format == FL_BFLOAT16) return frozen::Format::bfloat16;
    return options_.format == FL_AS_STORED && all_bfloat16 ? frozen::Format::bfloat16
                                                           : frozen::Format::float32;
  }

  // A weight or bias in float32.
  std::vector<float> finite_floats(const Tensor& tensor, bool is_bias) const {
    std::vector<float> values = floats_of(tensor);
    if (!all_below(values, HUGE_VALF)) {
      throw Error(FL_NOT_FINITE, quoted(tensor.name) + " has a NaN or an infinity");
    }
    if (!is_bias && model_->format == frozen::Format::bfloat16 &&
        !all_below(values, kBFloat16Overflow)) {
      throw Error(FL_NOT_FINITE, quoted(tensor.name) + " has a weight that bfloat16 cannot hold");
    }
    return values;
  }

  void add_layer(int64_t k) {
    Model& m = *model_;
    const frozen::Shape shape = {shape_of("weight_ih", k)[1],
                                 m.hidden_size,
                                 m.projection_size,
                                 m.directions,
                                 projected_,
                                 biases_};
    std::vector<std::vector<float>> floats;  // that `weights` points into
    std::array<frozen::Weights, 2> weights = {};
    const auto keep = [&](std::vector<float> values) -> const float* {
      floats.push_back(std::move(values));
      return floats.back().data();
    };
    const auto weight = [&](const char* kind, int64_t d) -> frozen::Matrix {
      const Tensor& tensor = use(name_of(kind, k, d));
      if (tensor.dtype != Dtype::i8) {
        return {keep(finite_floats(tensor, false)), nullptr, frozen::Format::float32};
      }
      return {tensor.data, keep(scales_of(tensor)), frozen::Format::int8};
    };
    const auto bias = [&](const char* kind, int64_t d) {
      return keep(finite_floats(use(name_of(kind, k, d)), true));
    };
    for (int64_t d = 0; d < m.directions; ++d) {
      weights[d].ih = weight("weight_ih", d);
      weights[d].hh = weight("weight_hh", d);
      if (projected_) weights[d].hr = weight("weight_hr", d);
      if (biases_) weights[d].bias_ih = bias("bias_ih", d);
      if (biases_) weights[d].bias_hh = bias("bias_hh", d);
    }
    Packed packed(frozen::packed_bytes(shape, m.format));
    frozen::pack(shape, m.format, weights, packed.bytes.get());
    m.layers.emplace_back(packed.bytes.get(), packed.size);
    m.packed.push_back(std::move(packed));
  }

  std::vector<float> scales_of(const Tensor& tensor) {
    const Tensor& scale = use(tensor.name + "_scale");
    std::vector<float> scales = floats_of(scale);
    for (const float s : scales) {
      if (!(s >= 0 && s < HUGE_VALF)) {
        throw Error(FL_NOT_FINITE,
                    quoted(scale.name) + " has a scale that is not finite, or below 0");
      }
    }
    return scales;
  }

  void keep_others() {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const Tensor& tensor = tensors_[i];
      if (used_[i] || !is_float(tensor.dtype)) continue;
      std::vector<float> values = floats_of(tensor);
      const bool finite = all_below(values, HUGE_VALF);
      model_->tensors.push_back({tensor.name, tensor.shape, std::move(values), finite});
    }
  }

  std::vector<Tensor> tensors_;
  std::vector<bool> used_;  // by the LSTM
  const fl_options& options_;
  std::string prefix_;
  bool is_cell_ = false;  // named as nn.LSTMCell's
  int64_t layers_ = 0;
  bool projected_ = false, biases_ = false;
  std::shared_ptr<Model> model_ = std::make_shared<Model>();
};

}  // namespace

Packed::Packed(int64_t bytes_needed) : size(bytes_needed) {
  const int64_t alignment = size >= kHugePage ? kHugePage : kAlignment;
  const int64_t rounded = (size + alignment - 1) / alignment * alignment;
  bytes.reset(std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded)));
  if (!bytes) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Weights that no cache holds are read faster; without huge pages nothing is lost.
  if (alignment == kHugePage) madvise(bytes.get(), static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
}
void Packed::Free::operator()(void* memory) const { std::free(memory); }

std::shared_ptr<const Model> make_model(std::string_view file, const fl_options& options) {
  return Loader(file, options).load();
}

}  // namespace fused_lstm::library
