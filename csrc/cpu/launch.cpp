// Runs a layer on a CPU by the kernels of kernels.h, divided among threads: the recurrence by
// direction, sequences and hidden units, the GEMMs of the gradients by rows.
#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/parts.h"
#include "device/device.h"
#include "device/pool.h"

namespace fused_lstm {
namespace {

// Calls body(Types, functions) for the types of a layer stored as `storage`.
template <class Body>
void with_types(at::ScalarType storage, const Body& body) {
  const cpu::Kernels& table = cpu::kernels();
  switch (storage) {
    case at::kFloat:
      return body(cpu::Float{}, table.of_float);
    case at::kDouble:
      return body(cpu::Double{}, table.of_double);
    case at::kHalf:
      return body(cpu::HalfFloat{}, table.of_half);
    case at::kBFloat16:
      if (table.bf16_operands) return body(cpu::BFloat16Operands{}, table.bf16_operands->functions);
      return body(cpu::BFloat16Float{}, table.of_bfloat16);
    default:
      TORCH_CHECK(false, "fused_lstm: no CPU kernel for dtype ", storage);
  }
}

#if AT_PARALLEL_OPENMP
constexpr bool kConcurrentThreads = true;  // all threads of a loop run, so a barrier is safe
#else
constexpr bool kConcurrentThreads = false;
#endif

// Calls body(begin, end) for ranges of 0 .. n, on all threads or on this one.
template <class Body>
void parallel_for(bool parallel, int64_t n, const Body& body) {
  if (parallel) {
    at::parallel_for(0, n, 1, body);
  } else {
    body(0, n);
  }
}

Plan plan_for(const Sizes& sizes, at::ScalarType storage, bool backward) {
  Problem problem = problem_of(sizes);
  problem.backward = backward;
  problem.machine = cpu_machine();
  problem.threads = at::get_num_threads();
  problem.concurrent_threads = kConcurrentThreads;
  problem.element_bytes = static_cast<int>(at::elementSize(storage));
  const bool bf16_operands = storage == at::kBFloat16 && cpu::kernels().bf16_operands;
  problem.operand_bytes =
      bf16_operands ? 2 : static_cast<int>(at::elementSize(accum_type(storage)));
  return make_plan(problem);
}

// Direction d's panels of `packed` [directions, bytes], or null.
template <class Operand>
Operand* panels_of(const at::Tensor& packed, int64_t d) {
  return reinterpret_cast<Operand*>(pointer<uint8_t>(packed, d));
}

// One weight of every direction in panels [directions, bytes]; undefined unless `needed`.
template <class Types>
at::Tensor pack(const cpu::Functions<Types>& functions, const std::vector<Weights>& weights,
                at::Tensor Weights::* name, cpu::PanelLayout layout, bool needed, bool parallel) {
  if (!needed) return {};
  std::vector<cpu::Packing<Types>> packings;
  for (const Weights& w : weights) {
    const at::Tensor& matrix = w.*name;
    packings.push_back(
        {pointer<typename Types::Storage>(matrix), matrix.size(0), matrix.size(1), layout});
  }
  const int64_t panels = functions.panel_count(packings[0]);
  const int64_t each = panels * functions.panel_size(packings[0]);
  using Operand = typename Types::Operand;
  const int64_t bytes = each * static_cast<int64_t>(sizeof(Operand));
  const at::Tensor packed =
      allocate_pooled({static_cast<int64_t>(packings.size()), bytes}, at::TensorOptions(at::kByte));
  parallel_for(parallel, packed.size(0) * panels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t d = i / panels;
      functions.pack(packings[d], i % panels, panels_of<Operand>(packed, d));
    }
  });
  return packed;
}

// Bounds of the batch and of the hidden units for the threads, units in multiples of `block`.
cpu::Slices slices_of(const Plan& plan, const Sequence& sequence, int64_t block) {
  const Sizes& s = sequence.sizes;
  const int64_t* const offsets = sequence.offsets.empty() ? nullptr : sequence.offsets.data();
  return {cpu::slice_batch(s.T, s.B, offsets, plan.batch_slices),
          cpu::slice_units(s.H, plan.unit_slices, block), plan.parallel};
}

template <class Params>
void run_parts(void (*kernel)(const Params&, const cpu::Part&), const std::vector<Params>& params,
               const cpu::Slices& slices) {
  cpu::run_parts(kernel, params.data(), static_cast<int64_t>(params.size()), slices,
                 [&](int64_t n, const auto& body) { parallel_for(slices.parallel, n, body); });
}

class CpuDevice final : public Device {
 public:
  // Most kernels multiply in float32 and widen 16-bit weights when they pack them.
  at::ScalarType operand_type(at::ScalarType storage) const override {
    const bool bf16_operands = storage == at::kBFloat16 && cpu::kernels().bf16_operands;
    return bf16_operands ? storage : accum_type(storage);
  }

  void gemm(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
            bool accumulate) const override {
    if (out.scalar_type() != a.scalar_type()) {  // ATen has no such GEMM
      gemm(out, a.to(out.scalar_type()), b.to(out.scalar_type()), accumulate);
    } else if (accumulate) {
      at::addmm_out(out, out, a, b);
    } else {
      at::mm_out(out, a, b);
    }
  }

  void forward(const Sequence& sequence, const ForwardTensors& layer) const override {
    const Sizes& sizes = sequence.sizes;
    const Plan plan = plan_for(sizes, layer.output.scalar_type(), /*backward=*/false);
    const cpu::Slices slices = slices_of(plan, sequence, cpu::kernels().unit_block / 4);
    with_types(layer.output.scalar_type(), [&](auto types, const auto& functions) {
      using Types = decltype(types);
      using Scalar = typename Types::Accum;
      using Storage = typename Types::Storage;
      using Operand = typename Types::Operand;
      const auto packed = [&](at::Tensor Weights::* name, cpu::PanelLayout layout, bool needed) {
        return pack(functions, layer.weights, name, layout, needed, plan.parallel);
      };
      const at::Tensor input =
          packed(&Weights::ih, cpu::PanelLayout::gates, plan.input_gemm == Gemm::packed_ahead);
      const at::Tensor recurrent =
          packed(&Weights::hh, cpu::PanelLayout::gates, plan.recurrent_gemm == Gemm::packed_ahead);
      const at::Tensor projection =
          packed(&Weights::hr, cpu::PanelLayout::plain_transposed, sizes.projected);

      std::vector<cpu::CpuForwardParams<Types>> params(sizes.directions);
      for (int64_t d = 0; d < sizes.directions; ++d) {
        const Weights& w = layer.weights[d];
        cpu::CpuForwardParams<Types>& f = params[d];
        f.layer = forward_params<Types>(sequence, layer, d);
        f.input_gemm = plan.input_gemm;
        f.recurrent_gemm = plan.recurrent_gemm;
        f.input_size = sizes.D;
        f.input = pointer<Storage>(layer.input);
        f.weight_ih = {pointer<Storage>(w.ih), panels_of<Operand>(input, d)};
        f.weight_hh = {pointer<Storage>(w.hh), panels_of<Operand>(recurrent, d)};
        f.weight_hr = {pointer<Storage>(w.hr), panels_of<Operand>(projection, d)};
        f.bias_ih = pointer<Storage>(w.bias_ih);
        f.bias_hh = pointer<Storage>(w.bias_hh);
        f.chunk = plan.chunk;
      }
      // One allocation: the scratch of each part, then the states of each direction. AMX tiles read
      // the hidden state in whole tiles: rows padded to 32 elements, and 15 rows past the last.
      const int64_t each = functions.forward_scratch_size(params[0], cpu::widest(slices.batch),
                                                          cpu::widest(slices.units));
      const int64_t P = sizes.P, H = sizes.H;
      const int64_t stride = (P + cpu::kAmxDepth - 1) / cpu::kAmxDepth * cpu::kAmxDepth;
      const int64_t rows = sizes.B + cpu::kAmxRows - 1;
      const int64_t states = 2 * rows * stride + sizes.B * (H + (sizes.projected ? H + P : 0));
      const at::Tensor scratch =
          allocate_pooled({slices.parts(sizes.directions) * each + sizes.directions * states},
                          at::TensorOptions(accum_type(layer.output.scalar_type())));
      Scalar* next = pointer<Scalar>(scratch) + slices.parts(sizes.directions) * each;
      const auto carve = [&](int64_t elements) {
        next += elements;
        return next - elements;
      };
      for (cpu::CpuForwardParams<Types>& f : params) {
        f.scratch = pointer<Scalar>(scratch);
        f.scratch_size = each;
        f.layer.hidden_stride = stride;
        for (Operand*& hidden : f.hidden) hidden = reinterpret_cast<Operand*>(carve(rows * stride));
        f.layer.cell_state = carve(sizes.B * H);
        if (sizes.projected) {
          f.layer.unprojected = reinterpret_cast<Operand*>(carve(sizes.B * H));
          f.layer.projection = carve(sizes.B * P);
        }
      }
      run_parts(functions.forward, params, slices);
    });
  }

  // The forward pass a second time: the same bits, and for more than a few sequences quicker than
  // two library GEMMs over all steps.
  void recompute(const Sequence& sequence, const BackwardTensors& layer) const override {
    const Sizes& s = sequence.sizes;
    const at::TensorOptions options = layer.gates.options();
    const at::Tensor output = allocate_pooled({s.N, s.directions * s.P}, options);
    const at::Tensor h_n = allocate({s.directions, s.B, s.P}, options);
    const at::Tensor c_n = allocate({s.directions, s.B, s.H}, options);
    forward(sequence, {layer.weights, layer.input, layer.h_0, layer.c_0, output, h_n, c_n,
                       layer.gates, layer.cells});
  }

  void backward(const Sequence& sequence, const BackwardTensors& layer) const override {
    const Sizes& sizes = sequence.sizes;
    const Plan plan = plan_for(sizes, layer.gates.scalar_type(), /*backward=*/true);
    const cpu::Slices slices = slices_of(plan, sequence, cpu::kernels().unit_block);
    with_types(layer.gates.scalar_type(), [&](auto types, const auto& functions) {
      using Types = decltype(types);
      using Scalar = typename Types::Accum;
      using Storage = typename Types::Storage;
      using Operand = typename Types::Operand;
      const auto packed = [&](at::Tensor Weights::* name, bool needed) {
        return pack(functions, layer.weights, name, cpu::PanelLayout::plain, needed, plan.parallel);
      };
      const at::Tensor recurrent = packed(&Weights::hh, plan.recurrent_gemm == Gemm::packed_ahead);
      const at::Tensor projection = packed(&Weights::hr, sizes.projected);
      at::Tensor grad_unprojected;
      if (sizes.projected) {
        grad_unprojected =
            allocate({sizes.directions, sizes.B * sizes.H}, layer.grad_hidden.options());
      }
      std::vector<cpu::CpuBackwardParams<Types>> params(sizes.directions);
      for (int64_t d = 0; d < sizes.directions; ++d) {
        const Weights& w = layer.weights[d];
        cpu::CpuBackwardParams<Types>& f = params[d];
        f.layer = backward_params<Types>(sequence, layer, d);
        f.layer.grad_unprojected = pointer<Scalar>(grad_unprojected, d);
        f.recurrent_gemm = plan.recurrent_gemm;
        f.weight_hh = {pointer<Storage>(w.hh), panels_of<Operand>(recurrent, d)};
        f.weight_hr = {pointer<Storage>(w.hr), panels_of<Operand>(projection, d)};
      }
      const int64_t each = functions.stage_size(4 * sizes.H);
      const at::Tensor stage = allocate_stages<Operand>(slices.parts(sizes.directions), each);
      for (cpu::CpuBackwardParams<Types>& f : params) {
        f.stage = panels_of<Operand>(stage, 0);
        f.stage_size = each;
      }
      run_parts(functions.backward, params, slices);
    });
  }

  at::Tensor input_gradient(const Sequence& sequence, const BackwardTensors& layer) const override {
    const Sizes& s = sequence.sizes;
    const at::ScalarType storage = layer.gates.scalar_type();
    if (!has_gradient_gemms(storage)) return Device::input_gradient(sequence, layer);
    const std::vector<int64_t> shape =
        s.packed ? std::vector<int64_t>{s.N, s.D} : std::vector<int64_t>{s.T, s.B, s.D};
    const at::Tensor sum = allocate(shape, layer.gates.options().dtype(accum_type(storage)));
    const Plan plan = plan_for(s, storage, /*backward=*/true);
    with_types(storage, [&](auto types, const auto& functions) {
      using Types = decltype(types);
      using Operand = typename Types::Operand;
      const at::Tensor panels =
          pack(functions, layer.weights, &Weights::ih, cpu::PanelLayout::plain,
               plan.input_gemm == Gemm::packed_ahead, plan.parallel);
      const int64_t stage_size = functions.stage_size(4 * s.H);
      const int64_t slices = plan.parallel ? at::get_num_threads() : 1;
      const at::Tensor stage = allocate_stages<Operand>(slices, stage_size);
      parallel_for(plan.parallel, slices, [&](int64_t begin, int64_t end) {
        for (int64_t d = 0; d < s.directions; ++d) {
          const cpu::InputGradientParams<Types> p = {
              plan.input_gemm,
              4 * s.H,
              s.D,
              pointer<Operand>(layer.grad_preactivations, d),
              {pointer<typename Types::Storage>(layer.weights[d].ih),
               panels_of<Operand>(panels, d)},
              pointer<typename Types::Accum>(sum),
              /*accumulate=*/d > 0};
          functions.gradients.input(p, s.N * begin / slices, s.N * end / slices,
                                    panels_of<Operand>(stage, 0) + begin * stage_size);
        }
      });
    });
    return sum;
  }

  // Without boundaries the hidden states that enter the steps are rows of h_0 and of the output.
  bool reads_h_prev(const Sequence& sequence, at::ScalarType storage) const override {
    return sequence.sizes.N == 0 || sequence.sizes.packed || sequence.lengths || sequence.reset ||
           operand_type(storage) != storage || !has_gradient_gemms(storage);
  }

  std::vector<Weights> weight_gradients(const Sequence& sequence,
                                        const BackwardTensors& layer) const override {
    const at::ScalarType storage = layer.gates.scalar_type();
    const Sizes& s = sequence.sizes;
    if (s.N == 0 || !has_gradient_gemms(storage)) return Device::weight_gradients(sequence, layer);
    const at::TensorOptions operands = layer.grad_preactivations.options();
    const at::TensorOptions options = operands.dtype(accum_type(storage));
    const Plan plan = plan_for(s, storage, /*backward=*/true);
    std::vector<Weights> all(s.directions);
    with_types(storage, [&](auto types, const auto& functions) {
      using Types = decltype(types);
      using Scalar = typename Types::Accum;
      using Operand = typename Types::Operand;
      at::Tensor x = sequence.lengths ? masked_input(sequence, layer.input) : layer.input;
      if (x.scalar_type() != operands.dtype()) x = x.to(operands.dtype());  // [N, D]
      const bool reads_h_0 = !layer.h_prev.defined();
      const at::Tensor h_0 =  // [directions, B, P]
          reads_h_0 && !layer.h_0.defined() ? allocate_zeros({s.directions, s.B, s.P}, operands)
                                            : layer.h_0;
      std::vector<cpu::WeightGradientParams<Types>> params;
      // The gradient [M, columns] of a weight, as a factor's.
      const auto allocate_gradient = [&](at::Tensor& grad, int64_t rows,
                                         cpu::RightFactor<Types> right) {
        grad = allocate({rows, right.columns}, options);
        right.grad = pointer<Scalar>(grad);
        return right;
      };
      const auto matrix = [](const Operand* rows, int64_t columns) -> cpu::RightFactor<Types> {
        return {nullptr, rows, 0, 0, columns, columns, nullptr};
      };
      for (int64_t d = 0; d < s.directions; ++d) {
        Weights& w = all[d];
        if (s.biases) {
          w.bias_ih = allocate({4 * s.H}, options);
          w.bias_hh = allocate({4 * s.H}, options);
        }
        cpu::RightFactor<Types> h_prev = matrix(pointer<Operand>(layer.h_prev, d), s.P);
        if (!layer.h_prev.defined() && !layer.output.defined()) {
          h_prev = matrix(pointer<Operand>(h_0, d), s.P);  // of one step
        } else if (!layer.h_prev.defined()) {
          const int64_t stride = s.directions * s.P, later = s.N - s.B;
          const Operand* const first = pointer<Operand>(h_0, d);                   // [B, P]
          const Operand* const output = pointer<Operand>(layer.output) + d * s.P;  // [N, stride]
          h_prev = d == 0 ? cpu::RightFactor<Types>{first, output, s.B, s.P, stride, s.P, nullptr}
                          : cpu::RightFactor<Types>{
                                output + s.B * stride, first, later, stride, s.P, s.P, nullptr};
        }
        params.push_back({plan.gradient_rows,
                          s.N,
                          pointer<Operand>(layer.grad_preactivations, d),
                          4 * s.H,
                          {allocate_gradient(w.ih, 4 * s.H, matrix(pointer<Operand>(x), s.D)),
                           allocate_gradient(w.hh, 4 * s.H, h_prev)},
                          2,
                          pointer<Scalar>(w.bias_ih)});
        if (s.projected) {
          params.push_back(
              {plan.gradient_rows,
               s.N,
               pointer<Operand>(layer.grad_projection, d),
               s.P,
               {allocate_gradient(w.hr, s.P, matrix(pointer<Operand>(layer.unprojected, d), s.H))},
               1,
               nullptr});
        }
      }
      const int64_t slices = plan.parallel ? at::get_num_threads() : 1;
      int64_t scratch_size = 0;
      for (const auto& p : params) {
        scratch_size = std::max(scratch_size, functions.gradients.weight_scratch_size(p));
      }
      const at::Tensor scratch = allocate_pooled({slices, scratch_size}, operands);
      parallel_for(plan.parallel, slices, [&](int64_t begin, int64_t end) {
        for (const auto& p : params) {
          const int64_t M = p.grad_columns;
          functions.gradients.weight(p, M * begin / slices, M * end / slices,
                                     pointer<Operand>(scratch, begin));
        }
      });
    });
    for (const Weights& w : all) {
      if (s.biases) std::memcpy(w.bias_hh.data_ptr(), w.bias_ih.data_ptr(), w.bias_ih.nbytes());
    }
    return all;
  }

 private:
  static bool has_gradient_gemms(at::ScalarType storage) {
    const cpu::Bf16Operands* const bf16 = cpu::kernels().bf16_operands;
    return storage != at::kBFloat16 || !bf16 || bf16->functions.gradients.weight;
  }

  template <class Operand>
  static at::Tensor allocate_stages(int64_t stages, int64_t size) {
    return allocate_pooled({stages * size * static_cast<int64_t>(sizeof(Operand))},
                           at::TensorOptions(at::kByte));
  }
};

}  // namespace

const Device& cpu_device() {
  static const CpuDevice device;
  return device;
}

}  // namespace fused_lstm
