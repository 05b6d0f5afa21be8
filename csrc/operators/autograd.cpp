// First derivatives by the backward operators; higher ones by differentiating the reference.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "operators/operators.h"
#include "operators/torch_private.h"

namespace fused_lstm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

at::Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); }

// What a node keeps: input, hidden, cell, the weights, then `others`.
void save(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& h_0,
          const at::Tensor& c_0, at::TensorList weights, const variable_list& others) {
  variable_list saved = {input, h_0, c_0};
  saved.insert(saved.end(), weights.begin(), weights.end());
  saved.insert(saved.end(), others.begin(), others.end());
  ctx->save_for_backward(std::move(saved));
  ctx->saved_data["differentiable"] = static_cast<int64_t>(3 + weights.size());
  ctx->set_materialize_grads(false);
}

bool any_needed(AutogradContext* ctx, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (ctx->needs_input_grad(i)) return true;
  }
  return false;
}

// The gradients of input, hidden, cell and weights, then `others` places without one.
variable_list in_order(const InputGradients& gradients, bool input_needed, int64_t weights,
                       size_t others) {
  variable_list list = {input_needed ? std::get<0>(gradients) : at::Tensor(),
                        std::get<1>(gradients), std::get<2>(gradients)};
  variable_list grad_weights = std::get<3>(gradients);
  grad_weights.resize(weights);
  list.insert(list.end(), grad_weights.begin(), grad_weights.end());
  list.resize(list.size() + others);
  return list;
}

// The backward operators give numbers; where these shall be differentiated again (create_graph),
// or are asked for many output gradients at once (is_grads_batched), the reference is
// differentiated instead.
bool needs_reference(const variable_list& gradients) {
  const auto batched = [](const at::Tensor& gradient) {
    const c10::DispatchKeySet keys({c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched});
    return gradient.defined() && gradient.key_set().has_any(keys);
  };
  return at::GradMode::is_enabled() || std::any_of(gradients.begin(), gradients.end(), batched);
}

// The gradients of reference(inputs), differentiable if the caller's GradMode says so.
template <class Reference>
variable_list reference_gradients(const variable_list& inputs, const variable_list& gradients,
                                  const Reference& reference) {
  const torch_private::WithoutAutocast guard;  // the inputs are of the types that it has chosen
  const bool create_graph = at::GradMode::is_enabled();
  const at::AutoGradMode enable(true);
  // Views stand for the inputs, so that an input computed from another one is not followed.
  variable_list views, wanted;
  for (const at::Tensor& input : inputs) {
    views.push_back(input.requires_grad() ? input.view_as(input) : input);
    if (input.requires_grad()) wanted.push_back(views.back());
  }
  variable_list outputs, grad_outputs;
  const variable_list results = reference(views);
  for (size_t i = 0; i < results.size(); ++i) {
    if (gradients[i].defined() && results[i].requires_grad()) {
      outputs.push_back(results[i]);
      grad_outputs.push_back(gradients[i]);
    }
  }
  const variable_list found = torch::autograd::grad(
      outputs, wanted, grad_outputs, /*retain_graph=*/true, create_graph, /*allow_unused=*/true);
  variable_list list;
  size_t next = 0;
  for (const at::Tensor& input : inputs) {
    list.push_back(input.requires_grad() ? found[next++] : at::Tensor());
  }
  return list;
}

bool differentiates(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                    at::TensorList weights) {
  if (!at::GradMode::is_enabled()) return false;
  bool any = input.requires_grad() || h_0.requires_grad() || c_0.requires_grad();
  for (const at::Tensor& weight : weights) any = any || weight.requires_grad();
  return any;
}

FiveTensors call_layer(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                       at::TensorList weights, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& reset,
                       bool reset_to_initial, bool keep_states) {
  static const auto op = find_operator<LayerSignature>("fused_lstm::layer");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(input, h_0, c_0, weights, batch_sizes, lengths, reset, reset_to_initial,
                 keep_states, /*recompute=*/false);
}

// The backward reads the output of every step but a direction's last: of a single step it reads
// none, and the caller may change that one in place.
bool reads_output(const at::Tensor& input, const OptionalTensor& batch_sizes) {
  const c10::SymInt steps = batch_sizes ? batch_sizes->sym_size(0) : input.sym_size(0);
  return !steps.sym_eq(1).guard_or_false(__FILE__, __LINE__);
}

class LayerFunction : public torch::autograd::Function<LayerFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& h_0,
                               const at::Tensor& c_0, at::TensorList weights,
                               const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                               const OptionalTensor& reset, bool reset_to_initial, bool keep_states,
                               bool recompute) {
    auto [output, h_n, c_n, cells, gates] =
        call_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, reset_to_initial,
                   keep_states || !recompute);
    ctx->saved_data["reset_to_initial"] = reset_to_initial;
    save(ctx, input, h_0, c_0, weights,
         {reads_output(input, batch_sizes) ? output : at::Tensor(),
          recompute ? at::Tensor() : cells, recompute ? at::Tensor() : gates,
          or_undefined(batch_sizes), or_undefined(lengths), or_undefined(reset)});
    if (recompute && !keep_states) ctx->mark_non_differentiable({cells, gates});  // empty
    return {output, h_n, c_n, cells, gates};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t n = ctx->saved_data["differentiable"].toInt();
    const bool reset_to_initial = ctx->saved_data["reset_to_initial"].toBool();
    const variable_list inputs(saved.begin(), saved.begin() + n);
    const OptionalTensor batch_sizes = if_defined(saved[n + 3]);
    const OptionalTensor lengths = if_defined(saved[n + 4]);
    const OptionalTensor reset = if_defined(saved[n + 5]);

    if (needs_reference(gradients)) {
      static const auto reference = find_operator<LayerSignature>("fused_lstm::layer_reference");
      variable_list list =
          reference_gradients(inputs, gradients, [&](const variable_list& x) -> variable_list {
            const auto [output, h_n, c_n, cells, gates] =
                reference.call(x[0], x[1], x[2], at::TensorList(x).slice(3), batch_sizes, lengths,
                               reset, reset_to_initial, /*keep_states=*/true,
                               /*recompute=*/false);
            return {output, h_n, c_n, cells, gates};
          });
      list.resize(n + 6);
      return list;
    }
    static const auto op = find_operator<LayerBackwardSignature>("fused_lstm::layer_backward");
    const bool input_needed = ctx->needs_input_grad(0);
    at::AutoDispatchBelowADInplaceOrView guard;
    return in_order(
        op.call(if_defined(gradients[0]), if_defined(gradients[1]), if_defined(gradients[2]),
                if_defined(gradients[3]), if_defined(gradients[4]), inputs[0], inputs[1], inputs[2],
                at::TensorList(inputs).slice(3), if_defined(saved[n]), if_defined(saved[n + 1]),
                if_defined(saved[n + 2]), batch_sizes, lengths, reset, reset_to_initial,
                input_needed, any_needed(ctx, 3, n)),
        input_needed, n - 3, /*others=*/6);
  }
};

FiveTensors layer(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                  at::TensorList weights, const OptionalTensor& batch_sizes,
                  const OptionalTensor& lengths, const OptionalTensor& reset, bool reset_to_initial,
                  bool keep_states, bool recompute) {
  if (!differentiates(input, h_0, c_0, weights)) {
    return call_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, reset_to_initial,
                      keep_states);
  }
  const variable_list r = LayerFunction::apply(input, h_0, c_0, weights, batch_sizes, lengths,
                                               reset, reset_to_initial, keep_states, recompute);
  return {r[0], r[1], r[2], r[3], r[4]};
}

FourTensors call_cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                      at::TensorList weights, bool keep_states) {
  static const auto op = find_operator<CellSignature>("fused_lstm::cell");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(input, h_0, c_0, weights, keep_states);
}

class CellFunction : public torch::autograd::Function<CellFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& h_0,
                               const at::Tensor& c_0, at::TensorList weights) {
    auto [h_n, c_n, cells, gates] = call_cell(input, h_0, c_0, weights, /*keep_states=*/true);
    save(ctx, input, h_0, c_0, weights, {cells, gates});
    return {h_n, c_n, cells, gates};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t n = ctx->saved_data["differentiable"].toInt();
    const variable_list inputs(saved.begin(), saved.begin() + n);

    if (needs_reference(gradients)) {
      static const auto reference = find_operator<LayerSignature>("fused_lstm::layer_reference");
      return reference_gradients(inputs, gradients, [&](const variable_list& x) -> variable_list {
        const auto [output, h_n, c_n, cells, gates] =
            reference.call(x[0].unsqueeze(0), x[1].unsqueeze(0), x[2].unsqueeze(0),
                           at::TensorList(x).slice(3), {}, {}, {}, false, true, false);
        return {h_n.squeeze(0), c_n.squeeze(0), cells.squeeze(0).squeeze(0),
                gates.squeeze(0).squeeze(0)};
      });
    }
    static const auto op = find_operator<CellBackwardSignature>("fused_lstm::cell_backward");
    const bool input_needed = ctx->needs_input_grad(0);
    at::AutoDispatchBelowADInplaceOrView guard;
    return in_order(op.call(if_defined(gradients[0]), if_defined(gradients[1]),
                            if_defined(gradients[2]), if_defined(gradients[3]), inputs[0],
                            inputs[1], inputs[2], at::TensorList(inputs).slice(3), saved[n],
                            saved[n + 1], input_needed, any_needed(ctx, 3, n)),
                    input_needed, n - 3, /*others=*/0);
  }
};

FourTensors cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                 at::TensorList weights, bool keep_states) {
  if (!differentiates(input, h_0, c_0, weights)) {
    return call_cell(input, h_0, c_0, weights, keep_states);
  }
  const variable_list r = CellFunction::apply(input, h_0, c_0, weights);
  return {r[0], r[1], r[2], r[3]};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_lstm, Autograd, m) {
  m.impl("layer", layer);
  m.impl("cell", cell);
  // The nodes above call them below this key, and differentiate the reference instead.
  m.impl("layer_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("cell_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_lstm
