// Reads safetensors files (https://huggingface.co/docs/safetensors), from anyone: what is no such
// file, to the letter, is an error.
//
//   8 bytes      n, little-endian
//   n bytes      JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..}
//   all others   the tensors' elements, little-endian, without holes or overlaps
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fused_lstm::library {

enum class Dtype { other, i8, f16, bf16, f32, f64 };

struct Tensor {
  std::string name;
  Dtype dtype;
  std::string dtype_name;
  std::vector<int64_t> shape;
  const char* data;  // not aligned
  int64_t elements;
};

constexpr int64_t kMaxDimensions = 8;

// The tensors of a whole file, sorted by name; they point into `bytes`. Throws Error.
std::vector<Tensor> parse_safetensors(std::string_view bytes);

// The bytes of a regular file of at most so many. Throws Error.
std::string read_file(const char* path, uint64_t max_bytes);

}  // namespace fused_lstm::library
