#include "operators/recompute.h"

#include <ATen/ops/addcmul.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

namespace fused_lstm {
namespace {

// What one direction sees of the batch, in masks of padded input; undefined where there are none.
struct Masks {
  at::Tensor ended;  // [T, B, 1]: past the end of the sequence
  at::Tensor fresh;  // [T, B, 1]: starts afresh before this step of the walk
};

Masks masks_of(const Sequence& sequence, bool reverse) {
  Masks masks;
  if (sequence.lengths) {
    const at::Tensor& lengths = *sequence.lengths;
    const at::Tensor steps = at::arange(sequence.sizes.T, lengths.options()).unsqueeze(1);
    masks.ended = steps.ge(lengths).unsqueeze(2);
  }
  if (sequence.reset) {
    masks.fresh = sequence.reset->unsqueeze(2);
    if (masks.ended.defined()) masks.fresh = masks.fresh.logical_and(masks.ended.logical_not());
    if (reverse) {  // a border before step t lies, for this direction, before its step t - 1
      const at::Tensor last = at::zeros_like(masks.fresh.slice(0, 0, 1));
      masks.fresh = at::cat({masks.fresh.slice(0, 1), last});
    }
  }
  return masks;
}

// [N, width] as the rows of each step, [rows, width].
std::vector<at::Tensor> by_step(const Sequence& sequence, const at::Tensor& tensor) {
  const Sizes& s = sequence.sizes;
  if (!s.packed) return tensor.view({s.T, s.B, tensor.size(1)}).unbind();
  std::vector<int64_t> rows;
  for (int64_t t = 0; t < s.T; ++t) {
    rows.push_back(sequence.offsets[t + 1] - sequence.offsets[t]);
  }
  return tensor.split_with_sizes(rows);
}

// The state before a step, [rows, width]: that after the step before it, `states[step.previous]`,
// and `start` [B, width] for sequences that begin here.
at::Tensor state_before(const Step& step, const std::vector<at::Tensor>& states,
                        const at::Tensor& start) {
  const int64_t running = std::min(step.rows, step.previous_rows);
  if (running == 0) return start.narrow(0, 0, step.rows);
  const at::Tensor& previous = states[step.previous];
  if (running < step.rows) {
    return at::cat({previous, start.narrow(0, running, step.rows - running)});
  }
  return running < step.previous_rows ? previous.narrow(0, 0, running) : previous;
}

// `state`, but where `fresh` says so that of a new episode.
at::Tensor renewed(const Sequence& sequence, const at::Tensor& fresh, const at::Tensor& start,
                   const at::Tensor& state) {
  if (!fresh.defined()) return state;
  return sequence.reset_to_initial ? at::where(fresh, start, state) : state.masked_fill(fresh, 0);
}

// The hidden state that entered each step [N, P], from those that left it, `output` [N, P], which
// is undefined where T == 1. start: the initial one [B, P].
at::Tensor h_prev(const Sequence& sequence, const Masks& masks, const at::Tensor& output,
                  const at::Tensor& start, bool reverse) {
  const Sizes& s = sequence.sizes;
  if (s.T == 1) {
    const at::Tensor before = start.view({1, s.B, s.P});
    return renewed(sequence, masks.fresh, start, before).view({s.N, s.P});
  }
  if (s.packed) {
    const std::vector<at::Tensor> outputs = by_step(sequence, output);
    std::vector<at::Tensor> before(s.T);
    for (int64_t index = 0; index < s.T; ++index) {
      const Step step = make_step(sequence.steps(reverse), index);
      before[step.t] = state_before(step, outputs, start);
    }
    return at::cat(before);
  }
  at::Tensor before = reverse ? at::cat({output.narrow(0, s.B, s.N - s.B), start})
                              : at::cat({start, output.narrow(0, 0, s.N - s.B)});
  before = before.view({s.T, s.B, s.P});
  if (masks.ended.defined() && reverse) {
    // Outputs past the end are zero, but the walk comes from there with the initial state.
    const at::Tensor last = masks.ended.new_ones({1, s.B, 1});
    before = at::where(at::cat({masks.ended.slice(0, 1), last}), start, before);
  }
  return renewed(sequence, masks.fresh, start, before).view({s.N, s.P});
}

// cells [N, H] = f c + i g through the steps, from the gates [N, 4, H]. start: the first c [B, H].
void walk_cells(const Sequence& sequence, const Masks& masks, const at::Tensor& gates,
                const at::Tensor& start, bool reverse, const at::Tensor& cells) {
  const Sizes& s = sequence.sizes;
  at::Tensor added = gates.select(1, 0).mul(gates.select(1, 2)), forget = gates.select(1, 1);
  if (masks.ended.defined()) {  // where c goes on as it is
    const at::Tensor ended = masks.ended.view({s.N, 1});
    added.masked_fill_(ended, 0);
    forget = forget.masked_fill(ended, 1);
  }
  const auto adding = by_step(sequence, added), forgetting = by_step(sequence, forget);
  std::vector<at::Tensor> states = by_step(sequence, cells);
  for (int64_t index = 0; index < s.T; ++index) {
    const Step step = make_step(sequence.steps(reverse), index);
    const int64_t t = step.t;
    const at::Tensor fresh = masks.fresh.defined() ? masks.fresh.select(0, t) : at::Tensor();
    const at::Tensor before = renewed(sequence, fresh, start, state_before(step, states, start));
    at::addcmul_out(states[t], adding[t], forgetting[t], before);
  }
}

}  // namespace

void recompute_states(const Device& device, const Sequence& sequence, const at::Tensor& input,
                      BackwardTensors& layer) {
  // A backward inside autocast: it must not choose types here.
  const torch_private::WithoutAutocast guard;
  const Sizes& s = sequence.sizes;
  const at::ScalarType storage = input.scalar_type(), accum = accum_type(storage);
  const auto operand = [&](const at::Tensor& tensor) {
    return tensor.to(device.operand_type(storage)).contiguous();
  };
  const at::Tensor x = operand(input).view({s.N, s.D});
  at::Tensor output;  // [directions, N, P]
  if (layer.output.defined()) {
    output = layer.output.view({s.N, s.directions, s.P}).transpose(0, 1);
  }

  layer.gates = allocate({s.directions, s.N, 4 * s.H}, input.options());
  layer.cells = allocate({s.directions, s.N, s.H}, input.options().dtype(accum));
  for (int64_t d = 0; d < s.directions; ++d) {
    const bool reverse = d == 1;
    const Weights& w = layer.weights[d];
    const Masks masks = masks_of(sequence, reverse);
    const at::Tensor before =
        h_prev(sequence, masks, direction_of(output, d), layer.h_0.select(0, d), reverse);
    at::Tensor gates = layer.gates.select(0, d);
    at::Tensor sum = storage == accum ? gates : at::empty_like(gates, gates.options().dtype(accum));
    device.gemm(sum, x, operand(w.ih).t(), /*accumulate=*/false);
    device.gemm(sum, operand(before), operand(w.hh).t(), /*accumulate=*/true);
    if (s.biases) sum.add_(w.bias_ih).add_(w.bias_hh);
    const at::Tensor parts = sum.view({s.N, 4, s.H});
    parts.slice(1, 0, 2).sigmoid_();
    parts.select(1, 2).tanh_();
    parts.select(1, 3).sigmoid_();
    // From the gates before they are rounded, as in the forward.
    walk_cells(sequence, masks, parts, layer.c_0.select(0, d).to(accum), reverse,
               layer.cells.select(0, d));
    if (storage != accum) gates.copy_(sum);
  }
}

}  // namespace fused_lstm
