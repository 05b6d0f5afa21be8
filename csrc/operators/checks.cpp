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

// The dtype must be the input's or, with `or_wider`, may be that of the sums.
void check_dtype(const ArgumentName& name, at::ScalarType dtype, const at::Tensor& input,
                 bool or_wider) {
  const at::ScalarType storage = input.scalar_type(), wider = accum_type(storage);
  if (dtype == storage || (or_wider && dtype == wider)) return;
  TORCH_CHECK(false, name, " has dtype ", dtype, ", must be the input's dtype ", storage,
              or_wider && wider != storage ? std::string(" or ") + c10::toString(wider) : "");
}

void check_matrix(const ArgumentName& name, const at::Tensor& tensor, at::IntArrayRef shape,
                  const at::Tensor& input, bool or_wider = false) {
  check_place(name, tensor, shape, input);
  check_dtype(name, tensor.scalar_type(), input, or_wider);
}

// H by the weights of one direction, `each` of them: what two say, so that the checks name the one
// that does not fit.
int64_t hidden_size_of(const at::TensorList& weights, size_t each) {
  const at::Tensor &ih = weights[0], &hh = weights[1], &last = each % 2 ? weights[each - 1] : hh;
  const auto check_dimensions = [](const char* name, const at::Tensor& weight) {
    TORCH_CHECK(weight.dim() == 2, name, " has shape ", weight.sizes(), ", must be a matrix");
  };
  check_dimensions("weight_ih", ih);
  check_dimensions("weight_hh", hh);
  check_dimensions("weight_hr", last);
  const int64_t rows = ih.size(0) / 4;
  return rows == hh.size(0) / 4 || rows == last.size(1) ? rows : last.size(1);
}

}  // namespace

void check_place(const ArgumentName& name, const at::Tensor& tensor, at::IntArrayRef shape,
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

void read_features(const LayerArguments& a, size_t each, Sizes& s) {
  const bool has_h_0 = a.h_0.defined(), has_c_0 = a.c_0.defined();
  s.biases = each >= 4;
  s.projected = each % 2 == 1;
  s.H = has_c_0 ? a.c_0.size(2) : hidden_size_of(a.weights, each);
  s.P = has_h_0 ? a.h_0.size(2) : s.projected ? a.weights[1].size(1) : s.H;
  TORCH_CHECK(s.projected || s.P == s.H, "h_0 has ", s.P, " features, must have ",
              has_c_0 ? "c_0's " : "the weights' ", s.H);
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

void check_states(const LayerArguments& a, const Sizes& s, int64_t count) {
  if (a.h_0.defined()) check_matrix("h_0", a.h_0, {count, s.B, s.P}, a.input);
  if (a.c_0.defined()) {
    check_place("c_0", a.c_0, {count, s.B, s.H}, a.input);
    check_dtype("c_0", cell_type(a.c_0, a.input), a.input, /*or_wider=*/true);
  }
}

void check_weights(const Weights& w, const Sizes& s, const at::Tensor& input, int64_t layer) {
  check_matrix({"weight_ih", layer}, w.ih, {4 * s.H, s.D}, input);
  check_matrix({"weight_hh", layer}, w.hh, {4 * s.H, s.P}, input);
  if (s.biases) {
    check_matrix({"bias_ih", layer}, w.bias_ih, {4 * s.H}, input, /*or_wider=*/true);
    check_matrix({"bias_hh", layer}, w.bias_hh, {4 * s.H}, input, /*or_wider=*/true);
  }
  if (s.projected) check_matrix({"weight_hr", layer}, w.hr, {s.P, s.H}, input);
}

at::ScalarType cell_type(const at::Tensor& c_0, const at::Tensor& input) {
  const at::ScalarType storage = input.scalar_type();
  return c_0.defined() ? c10::promoteTypes(c_0.scalar_type(), storage) : storage;
}

}  // namespace fused_lstm
