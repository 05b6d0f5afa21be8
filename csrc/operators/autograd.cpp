// First derivatives by the operator layer_backward; higher ones by differentiating the reference.
#include "operators/autograd.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>

#include "device/device.h"
#include "device/torch_private.h"

namespace fused_lstm {

void SavedLayer::pack(AutogradContext* ctx) const {
  variable_list tensors = {input, h_0, c_0};
  for (const OptionalTensor* tensor :
       {&states.output, &states.cells, &states.gates, &states.lower_outputs, &options.batch_sizes,
        &options.lengths, &options.reset}) {
    tensors.push_back(tensor->value_or(at::Tensor()));
  }
  tensors.insert(tensors.end(), weights.begin(), weights.end());
  ctx->save_for_backward(std::move(tensors));
  if (options.reset_to_initial) ctx->saved_data["reset_to_initial"] = true;
}

SavedLayer SavedLayer::unpack(AutogradContext* ctx) {
  const variable_list t = ctx->get_saved_variables();
  return {t[0],
          t[1],
          t[2],
          {t.begin() + 10, t.end()},
          {if_defined(t[7]), if_defined(t[8]), if_defined(t[9]),
           ctx->saved_data.count("reset_to_initial") > 0},
          {if_defined(t[3]), if_defined(t[4]), if_defined(t[5]), if_defined(t[6])}};
}

bool SavedLayer::weights_needed(AutogradContext* ctx) const {
  const size_t first = 1 + h_0.defined() + c_0.defined();  // absent ones do not count
  for (size_t i = 0; i < weights.size(); ++i) {
    if (ctx->needs_input_grad(first + i)) return true;
  }
  return false;
}

at::Tensor or_empty(const at::Tensor& tensor, const at::Tensor& input, at::ScalarType dtype) {
  return tensor.defined() ? tensor : at::empty({0}, input.options().dtype(dtype));
}

bool differentiates(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                    at::TensorList weights) {
  const auto requires_grad = [](const at::Tensor& tensor) { return tensor.requires_grad(); };
  return at::GradMode::is_enabled() &&
         (input.requires_grad() || h_0.requires_grad() || c_0.requires_grad() ||
          std::any_of(weights.begin(), weights.end(), requires_grad));
}

bool needs_reference(const variable_list& gradients) {
  const auto batched = [](const at::Tensor& gradient) {
    const c10::DispatchKeySet keys({c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched});
    return gradient.defined() && gradient.key_set().has_any(keys);
  };
  return at::GradMode::is_enabled() || std::any_of(gradients.begin(), gradients.end(), batched);
}

variable_list reference_gradients(
    const variable_list& inputs, const variable_list& gradients,
    const std::function<variable_list(const variable_list&)>& reference) {
  const torch_private::WithoutAutocast guard;  // the inputs are of the types that it has chosen
  const bool create_graph = at::GradMode::is_enabled();
  const at::AutoGradMode enable(true);
  // Differentiates with respect to views of the inputs, so that the graph ends at them even where
  // one input was computed from another.
  variable_list views, differentiated;
  for (const at::Tensor& input : inputs) {
    views.push_back(input.requires_grad() ? input.view_as(input) : input);
    if (input.requires_grad()) differentiated.push_back(views.back());
  }
  variable_list outputs, grad_outputs;
  const variable_list results = reference(views);
  for (size_t i = 0; i < results.size(); ++i) {
    if (gradients[i].defined() && results[i].requires_grad()) {
      outputs.push_back(results[i]);
      grad_outputs.push_back(gradients[i]);
    }
  }
  const variable_list found =
      torch::autograd::grad(outputs, differentiated, grad_outputs, /*retain_graph=*/true,
                            create_graph, /*allow_unused=*/true);
  variable_list list;
  size_t next = 0;
  for (const at::Tensor& input : inputs) {
    list.push_back(input.requires_grad() ? found[next++] : at::Tensor());
  }
  return list;
}

bool reads_output(const at::Tensor& input, const OptionalTensor& batch_sizes) {
  const c10::SymInt steps = batch_sizes ? batch_sizes->sym_size(0) : input.sym_size(0);
  return !steps.sym_eq(1).guard_or_false(__FILE__, __LINE__);
}

namespace {

LayerResult call_layer(const LayerArguments& arguments, bool keep_states) {
  static const auto op = find_operator<LayerSignature>("fused_lstm::layer");
  at::AutoDispatchBelowADInplaceOrView guard;
  return call(op, arguments, keep_states, /*recompute=*/false);
}

CellResult call_cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                     at::TensorList weights, bool keep_states) {
  static const auto op = find_operator<CellSignature>("fused_lstm::cell");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(input, h_0, c_0, weights, keep_states);
}

// The gradients of a cell's h_n [B, H], c_n [B, H], cells [B, H] and gates [B, 4H] as those of a
// layer of one step.
variable_list as_layer(const variable_list& gradients) {
  const auto step = [](const at::Tensor& x) { return x.defined() ? x.unsqueeze(0) : x; };
  return {{},
          step(gradients[0]),
          step(gradients[1]),
          step(step(gradients[2])),
          step(step(gradients[3]))};
}

// The node of a layer or of a cell: forward runs the operator, backward treats the cell, whose h_0
// is [B, H], as a layer of one step. Without keep_states cells and gates are not among the results.
class LayerFunction : public torch::autograd::Function<LayerFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input,
                               const OptionalTensor& given_h_0, const OptionalTensor& given_c_0,
                               at::TensorList weights, const LayerOptions& options,
                               bool keep_states, bool recompute, bool is_cell) {
    ctx->set_materialize_grads(false);
    const at::Tensor &h_0 = or_undefined(given_h_0), &c_0 = or_undefined(given_c_0);
    SavedLayer saved = {input, h_0, c_0, weights.vec(), options, {}};
    variable_list results;
    at::Tensor cells, gates;
    if (is_cell) {
      results.resize(2);
      std::tie(results[0], results[1], cells, gates) =
          call_cell(input, h_0, c_0, weights, /*keep_states=*/true);
    } else {
      results.resize(3);
      std::tie(results[0], results[1], results[2], cells, gates) =
          call_layer({input, h_0, c_0, weights, options}, keep_states || !recompute);
      if (reads_output(input, options.batch_sizes)) saved.states.output = results[0];
    }
    if (!recompute) {
      saved.states.cells = cells;
      saved.states.gates = gates;
    }
    saved.pack(ctx);
    if (keep_states) results.insert(results.end(), {cells, gates});
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    SavedLayer saved = SavedLayer::unpack(ctx);
    const bool is_cell = saved.h_0.defined() && saved.h_0.dim() == 2;
    const size_t inputs = 3 + saved.weights.size();
    gradients.resize(is_cell ? 4 : 5);
    variable_list found = needs_reference(gradients) ? by_reference(saved, gradients, is_cell)
                                                     : by_operator(ctx, saved, gradients, is_cell);
    found.resize(inputs + 4);  // the other arguments of forward have no gradient
    return found;
  }

 private:
  static variable_list by_reference(const SavedLayer& saved, const variable_list& gradients,
                                    bool is_cell) {
    static const auto op = find_operator<LayerSignature>("fused_lstm::layer_reference");
    variable_list inputs = {saved.input, saved.h_0, saved.c_0};
    inputs.insert(inputs.end(), saved.weights.begin(), saved.weights.end());
    return reference_gradients(
        inputs, is_cell ? as_layer(gradients) : gradients, [&](variable_list x) -> variable_list {
          if (is_cell) {
            for (int i = 0; i < 3; ++i) x[i] = x[i].unsqueeze(0);
          }
          const auto [output, h_n, c_n, cells, gates] =
              call(op, {x[0], x[1], x[2], at::TensorList(x).slice(3), saved.options},
                   /*keep_states=*/true, /*recompute=*/false);
          return {output, h_n, c_n, cells, gates};
        });
  }

  // Overwrites a cell's saved tensors with views of them.
  static variable_list by_operator(AutogradContext* ctx, SavedLayer& saved, variable_list gradients,
                                   bool is_cell) {
    static const auto op = find_operator<LayerBackwardSignature>("fused_lstm::layer_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    LayerStates& states = saved.states;
    if (is_cell) {
      gradients = as_layer(gradients);
      const bool h_0_requires_grad = saved.h_0.requires_grad();
      for (at::Tensor* x : {&saved.input, &saved.h_0, &saved.c_0}) *x = x->unsqueeze(0);
      saved.h_0.set_requires_grad(h_0_requires_grad);  // which torch.utils.flop_counter reads
      for (OptionalTensor* x : {&states.cells, &states.gates}) *x = (*x)->unsqueeze(0).unsqueeze(0);
    }
    const bool input_needed = ctx->needs_input_grad(0);
    const LayerOptions& options = saved.options;
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] =
        op.call(if_defined(gradients[0]), if_defined(gradients[1]), if_defined(gradients[2]),
                if_defined(gradients[3]), if_defined(gradients[4]), saved.input,
                if_defined(saved.h_0), if_defined(saved.c_0), saved.weights, states.output,
                states.cells, states.gates, options.batch_sizes, options.lengths, options.reset,
                options.reset_to_initial, input_needed, saved.weights_needed(ctx));
    variable_list found = {input_needed ? grad_input : at::Tensor(),
                           saved.h_0.defined() ? grad_h_0 : at::Tensor(),
                           saved.c_0.defined() ? grad_c_0 : at::Tensor()};
    if (is_cell) {
      for (at::Tensor& x : found) x = x.defined() ? x.squeeze(0) : x;
    }
    grad_weights.resize(saved.weights.size());
    found.insert(found.end(), grad_weights.begin(), grad_weights.end());
    return found;
  }
};

LayerResult layer(const LayerArguments& a, bool keep_states, bool recompute) {
  auto [output, h_n, c_n, cells, gates] = recorded_layer(a, keep_states, recompute);
  return {output, h_n, c_n, or_empty(cells, a.input, accum_type(a.input.scalar_type())),
          or_empty(gates, a.input, a.input.scalar_type())};
}

CellResult cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                at::TensorList weights, bool keep_states) {
  auto [h_n, c_n, cells, gates] = recorded_cell(input, h_0, c_0, weights, keep_states);
  return {h_n, c_n, or_empty(cells, input, accum_type(input.scalar_type())),
          or_empty(gates, input, input.scalar_type())};
}

}  // namespace

LayerResult recorded_layer(const LayerArguments& a, bool keep_states, bool recompute) {
  if (!differentiates(a.input, a.h_0, a.c_0, a.weights)) return call_layer(a, keep_states);
  variable_list r = LayerFunction::apply(a.input, if_defined(a.h_0), if_defined(a.c_0), a.weights,
                                         a.options, keep_states, recompute, /*is_cell=*/false);
  r.resize(5);
  return {r[0], r[1], r[2], r[3], r[4]};
}

CellResult recorded_cell(const at::Tensor& input, const at::Tensor& h_0, const at::Tensor& c_0,
                         at::TensorList weights, bool keep_states) {
  if (!differentiates(input, h_0, c_0, weights)) {
    return call_cell(input, h_0, c_0, weights, keep_states);
  }
  variable_list r = LayerFunction::apply(input, if_defined(h_0), if_defined(c_0), weights,
                                         LayerOptions{}, keep_states, /*recompute=*/false,
                                         /*is_cell=*/true);
  r.resize(4);
  return {r[0], r[1], r[2], r[3]};
}

TORCH_LIBRARY_IMPL(fused_lstm, Autograd, m) {
  m.impl("layer", layer_kernel<layer>);
  m.impl("cell", cell);
  // LayerFunction calls it below this key, and differentiates the reference instead.
  m.impl("layer_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_lstm
