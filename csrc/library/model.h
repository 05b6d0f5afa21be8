// The LSTM of a safetensors file: its frozen layers, and the file's other tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "frozen/packed_layer.h"
#include "library/fused_lstm.h"

namespace fused_lstm::library {

// A tensor that is no weight of the LSTM, in float32.
struct FloatTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> data;
  bool finite;
};

// The bytes of a packed layer.
struct Packed {
  struct Free {
    void operator()(void* bytes) const;
  };
  explicit Packed(int64_t size);

  std::unique_ptr<void, Free> bytes;  // 64-byte aligned
  int64_t size;
};

struct Model {
  int64_t directions, input_size, hidden_size, projection_size;
  frozen::Format format;
  std::vector<Packed> packed;         // [L]
  std::vector<frozen::Layer> layers;  // [L] views of `packed`
  std::vector<FloatTensor> tensors;   // sorted by name
};

// From the bytes of a whole file. Throws Error.
std::shared_ptr<const Model> make_model(std::string_view file, const fl_options& options);

}  // namespace fused_lstm::library
