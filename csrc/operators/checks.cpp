#include "operators/checks.h"

namespace fused_lstm {
namespace {

// The first row of each step of a packed sequence of N rows.
std::vector<int64_t> packed_offsets(const at::Tensor& batch_sizes, int64_t N) {
  TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.scalar_type() == at::kLong &&
                  batch_sizes.device().is_cpu(),
              "batch_sizes must be a 1-D int64 tensor on the CPU, got ", batch_sizes.dim(), "-D ",
              batch_sizes.scalar_type(), " on ", batch_sizes.device());
  const at::Tensor sizes = batch_sizes.contiguous();
  const int64_t* rows = sizes.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets = {0};
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    TORCH_CHECK(rows[t] > 0 && (t == 0 || rows[t] <= rows[t - 1]),
                "batch_sizes must be positive and must not increase, got ", rows[t], " at step ",
                t);
    offsets.push_back(offsets.back() + rows[t]);
  }
  TORCH_CHECK(offsets.back() == N, "batch_sizes add up to ", offsets.back(),
              ", must add up to the ", N, " rows of input");
  return offsets;
}

void check_lengths(const at::Tensor& lengths, const Sizes& s, const at::Tensor& input) {
  check_mask("lengths", lengths, {s.B}, at::kLong, input);
  if (!input.device().is_cpu()) return;  // reading the values would wait for the device
  const at::Tensor values = lengths.contiguous();
  for (int64_t b = 0; b < s.B; ++b) {
    const int64_t length = values.const_data_ptr<int64_t>()[b];
    TORCH_CHECK(length >= 0 && length <= s.T, "lengths[", b, "] is ", length,
                ", must be between 0 and the input's ", s.T, " steps");
  }
}

}  // namespace

void check_place(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                 const at::Tensor& input) {
  TORCH_CHECK(tensor.sizes() == shape, name, " has shape ", tensor.sizes(), ", must be ", shape);
  TORCH_CHECK(tensor.device() == input.device(), name, " is on ", tensor.device(),
              ", must be on the input's device ", input.device());
}

void check_mask(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                at::ScalarType dtype, const at::Tensor& input) {
  check_place(name, tensor, shape, input);
  TORCH_CHECK(tensor.scalar_type() == dtype, name, " has dtype ", tensor.scalar_type(),
              ", must be ", dtype);
}

void read_steps(const at::Tensor& input, const LayerOptions& options, Sequence& sequence) {
  Sizes& s = sequence.sizes;
  s.packed = options.batch_sizes.has_value();
  TORCH_CHECK(input.dim() == (s.packed ? 2 : 3), "input must be ",
              s.packed ? "[N, D] with batch_sizes" : "[T, B, D]", ", got ", input.dim(),
              " dimensions");
  s.D = input.size(-1);
  if (s.packed) {
    s.N = input.size(0);
    sequence.offsets = packed_offsets(*options.batch_sizes, s.N);
    s.T = static_cast<int64_t>(sequence.offsets.size()) - 1;
    s.B = s.T > 0 ? sequence.offsets[1] : 0;
  } else {
    s.T = input.size(0);
    s.B = input.size(1);
    s.N = s.T * s.B;
  }
  TORCH_CHECK(s.T > 0, "input has no time steps, must have at least 1");
}

void read_boundaries(const at::Tensor& input, const LayerOptions& options, Sequence& sequence) {
  const Sizes& s = sequence.sizes;
  TORCH_CHECK(!s.packed || !(options.lengths || options.reset),
              "lengths and reset go with padded input, not with batch_sizes");
  if (options.lengths) {
    check_lengths(*options.lengths, s, input);
    sequence.lengths = options.lengths->contiguous();
  }
  if (options.reset) {
    check_mask("reset", *options.reset, {s.T, s.B}, at::kBool, input);
    sequence.reset = options.reset->contiguous();
  }
  sequence.reset_to_initial = options.reset_to_initial;
}

}  // namespace fused_lstm
