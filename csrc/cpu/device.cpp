// The layer on a CPU: library GEMMs for whole sequences, and the kernels of kernels.h for the
// walk over time, spread over the threads by batch slice and direction.
#include "../device.h"

#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include "kernels.h"

namespace fused_lstm {
namespace {

// Calls body(Types, packing, pair) for the types of a layer stored as `storage`.
template <class Body>
void with_types(at::ScalarType storage, const Body& body) {
  const cpu::Kernels& table = cpu::kernels();
  switch (storage) {
    case at::kFloat:
      return body(cpu::Float{}, table.pack_float, table.of_float);
    case at::kDouble:
      return body(cpu::Double{}, table.pack_double, table.of_double);
    case at::kHalf:
      return body(cpu::HalfFloat{}, table.pack_float, table.of_half);
    case at::kBFloat16:
      return body(cpu::BFloat16Float{}, table.pack_float, table.of_bfloat16);
    default:
      TORCH_CHECK(false, "fused_lstm: no CPU kernel for dtype ", storage);
  }
}

Plan plan_for(const Sizes& sizes) {
  return make_plan({/*cuda=*/false, at::get_num_threads(), sizes.T, sizes.B, sizes.N, sizes.H,
                    sizes.P, sizes.D, sizes.directions});
}

template <class Body>
void for_each(bool parallel, int64_t n, const Body& body) {
  if (parallel) {
    at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  } else {
    for (int64_t i = 0; i < n; ++i) body(i);
  }
}

// Borders of `slices` parts of the batch with nearly the same number of rows each.
std::vector<int64_t> slice_batch(const Sequence& sequence, int64_t slices) {
  const Sizes& sizes = sequence.sizes;
  std::vector<int64_t> borders = {0};
  int64_t taken = 0;         // rows of the sequences so far
  int64_t length = sizes.T;  // of sequence b: those of a packed batch only get shorter
  for (int64_t b = 0; b < sizes.B; ++b) {
    const int64_t slice = static_cast<int64_t>(borders.size());
    if (slice < slices && b > borders.back() && taken * slices >= sizes.N * slice) {
      borders.push_back(b);
    }
    if (!sequence.offsets.empty()) {
      const auto rows = [&](int64_t t) { return sequence.offsets[t + 1] - sequence.offsets[t]; };
      while (length > 0 && rows(length - 1) <= b) --length;
    }
    taken += length;
  }
  borders.push_back(sizes.B);
  return borders;
}

// The kernels take the right factor B of a product A B; W is a weight matrix that lies row by row.
template <class Scalar>
cpu::Factor<Scalar> plain(const at::Tensor& W) {
  return {W.const_data_ptr<Scalar>(), W.size(0), W.size(1), W.size(1), 1, /*gates=*/false};
}
template <class Scalar>
cpu::Factor<Scalar> transposed(const at::Tensor& W) {
  return {W.const_data_ptr<Scalar>(), W.size(1), W.size(0), 1, W.size(1), /*gates=*/false};
}
template <class Scalar>
cpu::Factor<Scalar> transposed_gates(const at::Tensor& W) {
  return {W.const_data_ptr<Scalar>(), W.size(1), W.size(0), 1, W.size(1), /*gates=*/true};
}

// One weight of every direction in panels, [directions, panels, panel size].
template <class Scalar, class Direction>
at::Tensor pack(const cpu::Packing<Scalar>& packing, const std::vector<Direction>& directions,
                at::Tensor Direction::* weight, cpu::Factor<Scalar> (*factor_of)(const at::Tensor&),
                bool parallel) {
  std::vector<cpu::Factor<Scalar>> factors;
  for (const Direction& d : directions) factors.push_back(factor_of(d.*weight));
  const int64_t panels = packing.panels(factors[0]);
  const at::Tensor packed =
      at::empty({static_cast<int64_t>(factors.size()), panels, packing.panel_size(factors[0])},
                (directions[0].*weight).options());
  for_each(parallel, packed.size(0) * panels, [&](int64_t i) {
    const int64_t d = i / panels;
    packing.pack(factors[d], i % panels, packed.data_ptr<Scalar>() + d * packed.stride(0));
  });
  return packed;
}

template <class Scalar>
Scalar* direction_of(const at::Tensor& packed, size_t d) {
  return packed.defined() ? packed.data_ptr<Scalar>() + d * packed.stride(0) : nullptr;
}

// Every direction's sequences, slice by slice.
template <class Params>
void walk(void (*kernel)(const Params&, int64_t, int64_t), const std::vector<Params>& params,
          const std::vector<int64_t>& slices, bool parallel) {
  const int64_t parts = static_cast<int64_t>(slices.size()) - 1;
  for_each(parallel, parts * static_cast<int64_t>(params.size()),
           [&](int64_t i) { kernel(params[i / parts], slices[i % parts], slices[i % parts + 1]); });
}

class CpuDevice final : public Device {
 public:
  // The kernels multiply in float32, so that 16-bit weights are widened once, when packed.
  at::ScalarType operand_type(at::ScalarType storage) const override { return accum_type(storage); }

  void product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
               bool accumulate) const override {
    if (accumulate) {
      at::addmm_out(out, out, a, b);
    } else {
      at::mm_out(out, a, b);
    }
  }

  void forward(const Sequence& sequence, std::vector<DirectionForward>& directions) const override {
    const Sizes& sizes = sequence.sizes;
    const Plan plan = plan_for(sizes);
    const std::vector<int64_t> slices = slice_batch(sequence, plan.slices);
    with_types(directions[0].output.scalar_type(), [&](auto types, auto& packing, auto& kernel) {
      using Types = decltype(types);
      using Scalar = typename Types::Accum;
      at::Tensor input, recurrent, projection;
      if (plan.kernel == Kernel::merged) {
        input = pack(packing, directions, &DirectionForward::weight_ih, transposed_gates<Scalar>,
                     plan.parallel);
      } else {
        for (DirectionForward& d : directions) {
          d.preactivations = preactivations_of(sizes, d);
          product(d.preactivations, d.input, d.weight_ih.t(), /*accumulate=*/false);
        }
      }
      if (plan.kernel == Kernel::single_step) {
        for (DirectionForward& d : directions) {
          product(d.preactivations, d.hidden_state, d.weight_hh.t(), /*accumulate=*/true);
        }
      } else {
        recurrent = pack(packing, directions, &DirectionForward::weight_hh,
                         transposed_gates<Scalar>, plan.parallel);
      }
      if (sizes.projected) {
        projection = pack(packing, directions, &DirectionForward::weight_hr, transposed<Scalar>,
                          plan.parallel);
      }

      const int64_t width = sizes.P + (sizes.projected ? sizes.H + sizes.P : 0);
      const at::Tensor scratch =
          at::empty({sizes.directions, sizes.B * width}, directions[0].cell_state.options());
      std::vector<ForwardParams<Types>> params;
      for (size_t d = 0; d < directions.size(); ++d) {
        ForwardParams<Types> p = forward_params<Types>(sequence, directions[d]);
        p.weight_ih = direction_of<Scalar>(input, d);
        p.weight_hh = direction_of<Scalar>(recurrent, d);
        p.weight_hr = direction_of<Scalar>(projection, d);
        p.hidden_next = direction_of<Scalar>(scratch, d);
        if (sizes.projected) {
          p.projection = p.hidden_next + sizes.B * sizes.P;
          p.unprojected = p.projection + sizes.B * sizes.P;
        }
        params.push_back(p);
      }
      walk(kernel.forward, params, slices, plan.parallel);
    });
  }

  void backward(const Sequence& sequence,
                std::vector<DirectionBackward>& directions) const override {
    const Sizes& sizes = sequence.sizes;
    const Plan plan = plan_for(sizes);
    const std::vector<int64_t> slices = slice_batch(sequence, plan.slices);
    with_types(directions[0].gates.scalar_type(), [&](auto types, auto& packing, auto& kernel) {
      using Types = decltype(types);
      using Scalar = typename Types::Accum;
      at::Tensor recurrent, projection, scratch;
      if (plan.kernel != Kernel::single_step) {
        recurrent =
            pack(packing, directions, &DirectionBackward::weight_hh, plain<Scalar>, plan.parallel);
      }
      if (sizes.projected) {
        projection =
            pack(packing, directions, &DirectionBackward::weight_hr, plain<Scalar>, plan.parallel);
        scratch =
            at::empty({sizes.directions, sizes.B * sizes.H}, directions[0].grad_hidden.options());
      }

      std::vector<BackwardParams<Types>> params;
      for (size_t d = 0; d < directions.size(); ++d) {
        BackwardParams<Types> p = backward_params<Types>(sequence, directions[d]);
        p.weight_hh = direction_of<Scalar>(recurrent, d);
        p.weight_hr = direction_of<Scalar>(projection, d);
        p.grad_unprojected = direction_of<Scalar>(scratch, d);
        params.push_back(p);
      }
      walk(kernel.backward, params, slices, plan.parallel);
      if (plan.kernel == Kernel::single_step) {
        for (DirectionBackward& d : directions) {
          product(d.grad_hidden, d.grad_preactivations, d.weight_hh, /*accumulate=*/true);
        }
      }
    });
  }
};

}  // namespace

const Device& cpu_device() {
  static const CpuDevice device;
  return device;
}

}  // namespace fused_lstm
