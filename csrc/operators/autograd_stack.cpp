// First derivatives of a stack by the operator stack_backward; higher ones by differentiating the
// reference, one layer after the other.
#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "device/device.h"
#include "operators/autograd.h"

namespace fused_lstm {
namespace {

StackResult call_stack(const StackArguments& arguments, bool keep_states) {
  static const auto op = find_operator<StackSignature>("fused_lstm::stack");
  at::AutoDispatchBelowADInplaceOrView guard;
  return call(op, arguments, keep_states, /*recompute=*/false);
}

// Of the results output, h_n and c_n can be differentiated; lower_outputs, cells and gates, the
// last two without keep_states not among them, cannot.
class StackFunction : public torch::autograd::Function<StackFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input,
                               const OptionalTensor& given_h_0, const OptionalTensor& given_c_0,
                               at::TensorList weights, const LayerOptions& options, int64_t layers,
                               bool keep_states, bool recompute) {
    ctx->set_materialize_grads(false);
    const at::Tensor &h_0 = or_undefined(given_h_0), &c_0 = or_undefined(given_c_0);
    SavedLayer saved = {input, h_0, c_0, weights.vec(), options, {}};
    auto [output, h_n, c_n, lower_outputs, cells, gates] =
        call_stack({{input, h_0, c_0, weights, options}, layers}, keep_states || !recompute);
    if (reads_output(input, options.batch_sizes)) saved.states.output = output;
    saved.states.lower_outputs = lower_outputs;
    if (!recompute) {
      saved.states.cells = cells;
      saved.states.gates = gates;
    }
    saved.pack(ctx);
    ctx->saved_data["layers"] = layers;
    variable_list results = {output, h_n, c_n, lower_outputs};
    if (keep_states) results.insert(results.end(), {cells, gates});
    ctx->mark_non_differentiable({results.begin() + 3, results.end()});
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const SavedLayer saved = SavedLayer::unpack(ctx);
    const int64_t layers = ctx->saved_data["layers"].toInt();
    const size_t inputs = 3 + saved.weights.size();
    gradients.resize(3);
    variable_list found = needs_reference(gradients) ? by_reference(saved, layers, gradients)
                                                     : by_operator(ctx, saved, layers, gradients);
    found.resize(inputs + 4);  // the other arguments of forward have no gradient
    return found;
  }

 private:
  static variable_list by_reference(const SavedLayer& saved, int64_t layers,
                                    const variable_list& gradients) {
    static const auto op = find_operator<LayerSignature>("fused_lstm::layer_reference");
    variable_list inputs = {saved.input, saved.h_0, saved.c_0};
    inputs.insert(inputs.end(), saved.weights.begin(), saved.weights.end());
    return reference_gradients(inputs, gradients, [&](const variable_list& x) -> variable_list {
      const size_t each = saved.weights.size() / layers;
      at::Tensor output = x[0];
      variable_list h_n, c_n;
      for (int64_t k = 0; k < layers; ++k) {
        const auto of_layer = [k](const at::Tensor& state) {
          return state.defined() ? state.narrow(0, k, 1) : state;
        };
        auto [next, h, c, cells, gates] =
            call(op,
                 {output, of_layer(x[1]), of_layer(x[2]),
                  at::TensorList(x).slice(3 + k * each, each), saved.options},
                 /*keep_states=*/true, /*recompute=*/false);
        output = next;
        h_n.push_back(h);
        c_n.push_back(c);
      }
      return {output, at::cat(h_n), at::cat(c_n)};
    });
  }

  static variable_list by_operator(AutogradContext* ctx, const SavedLayer& saved, int64_t layers,
                                   const variable_list& gradients) {
    static const auto op = find_operator<StackBackwardSignature>("fused_lstm::stack_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    const bool input_needed = ctx->needs_input_grad(0);
    const LayerStates& states = saved.states;
    const LayerOptions& options = saved.options;
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] = op.call(
        if_defined(gradients[0]), if_defined(gradients[1]), if_defined(gradients[2]), saved.input,
        if_defined(saved.h_0), if_defined(saved.c_0), saved.weights, layers, states.output,
        states.lower_outputs, states.cells, states.gates, options.batch_sizes, options.lengths,
        options.reset, options.reset_to_initial, input_needed, saved.weights_needed(ctx));
    variable_list found = {input_needed ? grad_input : at::Tensor(),
                           saved.h_0.defined() ? grad_h_0 : at::Tensor(),
                           saved.c_0.defined() ? grad_c_0 : at::Tensor()};
    grad_weights.resize(saved.weights.size());
    found.insert(found.end(), grad_weights.begin(), grad_weights.end());
    return found;
  }
};

StackResult stack(const StackArguments& a, bool keep_states, bool recompute) {
  auto [output, h_n, c_n, lower_outputs, cells, gates] = recorded_stack(a, keep_states, recompute);
  const at::Tensor& input = a.all.input;
  return {output,
          h_n,
          c_n,
          lower_outputs,
          or_empty(cells, input, accum_type(input.scalar_type())),
          or_empty(gates, input, input.scalar_type())};
}

}  // namespace

StackResult recorded_stack(const StackArguments& a, bool keep_states, bool recompute) {
  const LayerArguments& all = a.all;
  if (!differentiates(all.input, all.h_0, all.c_0, all.weights)) return call_stack(a, keep_states);
  variable_list r =
      StackFunction::apply(all.input, if_defined(all.h_0), if_defined(all.c_0), all.weights,
                           all.options, a.layers, keep_states, recompute);
  r.resize(6);
  return {r[0], r[1], r[2], r[3], r[4], r[5]};
}

TORCH_LIBRARY_IMPL(fused_lstm, Autograd, m) {
  m.impl("stack", stack_kernel<stack>);
  // StackFunction calls it below this key, and differentiates the reference instead.
  m.impl("stack_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_lstm
