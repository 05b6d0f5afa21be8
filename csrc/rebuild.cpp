#include "rebuild.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

namespace fused_lstm {
namespace {

// For each row of a packed sequence the row that holds the state before it, in the rows [N, ...] of
// the output followed by those of the initial state [B, ...].
at::Tensor previous_rows(const at::Tensor& batch_sizes, int64_t N, bool reverse) {
  const at::Tensor sizes = batch_sizes.contiguous();
  const int64_t* rows = sizes.const_data_ptr<int64_t>();
  std::vector<int64_t> index;
  for (int64_t t = 0, first = 0; t < sizes.numel(); first += rows[t++]) {
    const int64_t other = reverse ? t + 1 : t - 1;
    const bool exists = other >= 0 && other < sizes.numel();
    const int64_t other_first = reverse ? first + rows[t] : exists ? first - rows[other] : 0;
    for (int64_t b = 0; b < rows[t]; ++b) {
      index.push_back(exists && b < rows[other] ? other_first + b : N + b);
    }
  }
  return at::tensor(index, at::kLong);
}

// The hidden state that entered each step of a direction, shaped as `output`, this direction's
// [T, B, P] or [N, P]. start: its initial hidden state [B, P].
at::Tensor hidden_before(const LayerArguments& a, const at::Tensor& output, const at::Tensor& start,
                         bool reverse) {
  if (a.batch_sizes) {
    const at::Tensor index = previous_rows(*a.batch_sizes, output.size(0), reverse);
    return at::cat({output, start}).index_select(0, index.to(output.device()));
  }
  const int64_t T = output.size(0);
  const at::Tensor first = start.unsqueeze(0);  // [1, B, P]
  at::Tensor before =
      reverse ? at::cat({output.slice(0, 1), first}) : at::cat({first, output.slice(0, 0, T - 1)});
  if (a.reset) {
    const at::Tensor& reset = *a.reset;  // [T, B]
    const at::Tensor fresh =
        reverse ? at::cat({reset.slice(0, 1), at::zeros_like(reset.slice(0, 0, 1))}) : reset;
    before = a.reset_to_initial ? at::where(fresh.unsqueeze(2), first, before)
                                : before.masked_fill(fresh.unsqueeze(2), 0);
  }
  if (a.lengths && reverse) {  // each sequence starts at its own last step
    const at::Tensor next = at::arange(1, T + 1, a.lengths->options()).unsqueeze(1);
    before = at::where(next.ge(*a.lengths).unsqueeze(2), first, before);
  }
  return before;
}

}  // namespace

at::Tensor rebuild_gates(const LayerArguments& a, const at::Tensor& output) {
#ifdef FUSED_LSTM_WITH_CUDA
  const Device& device = a.input.is_cuda() ? cuda_device() : cpu_device();
#else
  const Device& device = cpu_device();
#endif
  const at::ScalarType storage = a.input.scalar_type(), accum = accum_type(storage);
  const int64_t directions = a.hidden.size(0), P = a.hidden.size(2), H = a.cell.size(2);
  const int64_t N = output.numel() / output.size(-1);
  const auto rows = [&](const at::Tensor& tensor) {  // [N, ...] as products read them
    return tensor.to(device.operand_type(storage)).contiguous().view({N, tensor.size(-1)});
  };
  const auto columns = [&](const at::Tensor& weight) {
    return weight.to(device.operand_type(storage)).contiguous().t();
  };

  std::vector<int64_t> shape = a.input.sizes().vec();
  shape.insert(shape.begin(), directions);
  shape.back() = 4 * H;
  const at::Tensor gates = at::empty(shape, a.input.options());
  const size_t each = a.weights.size() / directions;
  for (int64_t d = 0; d < directions; ++d) {
    const at::Tensor* weights = a.weights.data() + d * each;
    const at::Tensor own = output.narrow(-1, d * P, P);
    const at::Tensor before = hidden_before(a, own, a.hidden.select(0, d), d == 1);
    at::Tensor sum = at::empty({N, 4 * H}, a.input.options().dtype(accum));
    device.product(sum, rows(a.input), columns(weights[0]), /*accumulate=*/false);
    device.product(sum, rows(before), columns(weights[1]), /*accumulate=*/true);
    if (each >= 4) sum.add_(weights[2]).add_(weights[3]);
    const at::Tensor parts = sum.view({N, 4, H});
    parts.slice(1, 0, 2).sigmoid_();
    parts.select(1, 2).tanh_();
    parts.select(1, 3).sigmoid_();
    gates.select(0, d).view({N, 4 * H}).copy_(sum);
  }
  return gates;
}

}  // namespace fused_lstm
