// One thread for each unit j of each sequence b, so that a warp reads and writes neighbours in
// memory. A step is two launches on one stream, the GEMM before the kernel:
//
//   hidden [B, P] --GEMM--> preactivations [rows, 4H] --forward_kernel--> gates, cells, output
//      ^                                                                              |
//      +----------------------- the operand of the next step's GEMM ------------------+
//
// With a projection, forward_kernel leaves o tanh(c) in `unprojected`, a second GEMM multiplies it
// by weight_hr, and emit_kernel takes the place of the last arrow. Backward mirrors this:
// collect_kernel before the GEMM with weight_hr, backward_kernel before the one with weight_hh.
#include <cuda_runtime.h>

#include "cuda/stepwise/params.h"

namespace fused_lstm {
namespace cuda {
namespace {

constexpr int kBlockSize = 256;

// One thread for each unit j of each sequence b: neighbours in j read neighbours in memory.
template <class Body>
__device__ void for_units(int64_t rows, int64_t units, const Body& body) {
  const int64_t total = rows * units;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kBlockSize;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockSize + threadIdx.x; i < total;
       i += stride) {
    body(i / units, i % units);
  }
}

template <class Types>
__device__ Gates<typename Types::Accum> preactivations_of(const StepwiseForwardParams<Types>& p,
                                                          int64_t row, int64_t j) {
  using V = typename Types::Accum;
  const int64_t H = p.layer.hidden_size;
  Gates<V> sum = load_gates<V>(p.preactivations + row * 4 * H, H, j, 1);
  if (p.bias_ih) sum = add(sum, load_gates<V>(p.bias_ih, H, j, 1));
  if (p.bias_hh) sum = add(sum, load_gates<V>(p.bias_hh, H, j, 1));
  return sum;
}

template <class Types>
__global__ void __launch_bounds__(kBlockSize)
    start_kernel(const StepwiseForwardParams<Types> p, const Step first) {
  using V = typename Types::Accum;
  const int64_t H = p.layer.hidden_size, P = p.layer.projection_size, B = p.layer.steps.batch;
  for_units(B, H, [&](int64_t b, int64_t j) {
    p.layer.cell_state[b * H + j] = load_cell<V>(p.layer.c_0, b * H + j, 1);
  });
  for_units(B, P, [&](int64_t b, int64_t j) {
    store<V>(p.hidden + b * P + j, first_hidden<V>(p.layer, first, b, j, 1), 1);
  });
}

template <class Types>
__global__ void __launch_bounds__(kBlockSize)
    forward_kernel(const StepwiseForwardParams<Types> p, const Step step) {
  using V = typename Types::Accum;
  for_units(step.rows, p.layer.hidden_size, [&](int64_t b, int64_t j) {
    const Gates<V> sum = preactivations_of(p, step.offset + b, j);
    V* const cell_state = p.layer.cell_state + b * p.layer.hidden_size + j;
    const Updated<V> updated = update_cell<V>(p.layer, step, b, j, sum, cell_state, 1);
    typename Types::Operand* const hidden = p.hidden + b * p.layer.hidden_stride + j;
    update_hidden<V>(p.layer, step, b, j, updated, hidden, hidden, 1);
  });
}

template <class Types>
__global__ void __launch_bounds__(kBlockSize)
    emit_kernel(const StepwiseForwardParams<Types> p, const Step step) {
  using V = typename Types::Accum;
  const int64_t P = p.layer.projection_size;
  for_units(step.rows, P, [&](int64_t b, int64_t j) {
    typename Types::Operand* const hidden = p.hidden + b * p.layer.hidden_stride + j;
    emit_hidden<V>(p.layer, step, b, j, p.layer.projection[b * P + j], hidden, hidden, 1);
  });
}

template <class Types>
__global__ void __launch_bounds__(kBlockSize)
    collect_kernel(const BackwardParams<Types> p, const Step step) {
  using V = typename Types::Accum;
  for_units(step.rows, p.projection_size, [&](int64_t b, int64_t j) {
    const int64_t P = p.projection_size;
    save_h_prev<V>(p, step, b, j, 1);
    const V grad = collect_grad_hidden<V>(p, step, b, j, load_grad_output<V>(p, step, b, j, 1),
                                          p.grad_hidden + b * P + j, 1);
    store<V>(p.grad_projection + (step.offset + b) * P + j, grad, 1);
  });
}

template <class Types>
__global__ void __launch_bounds__(kBlockSize)
    backward_kernel(const BackwardParams<Types> p, const Step step) {
  using V = typename Types::Accum;
  for_units(step.rows, p.hidden_size, [&](int64_t b, int64_t j) {
    const int64_t state = b * p.hidden_size + j;
    V grad;
    if (p.projected) {
      grad = p.grad_unprojected[state];
    } else {
      save_h_prev<V>(p, step, b, j, 1);
      grad = collect_grad_hidden<V>(p, step, b, j, load_grad_output<V>(p, step, b, j, 1),
                                    p.grad_hidden + state, 1);
    }
    backward_units<V>(p, step, b, j, grad, load_saved<V>(p, step, b, j, 1), p.grad_cell + state, 1);
  });
}

template <class Types>
__global__ void __launch_bounds__(kBlockSize) h_prev_kernel(const BackwardParams<Types> p) {
  for_units(p.steps.batch, p.projection_size, [&](int64_t b, int64_t j) {
    for (int64_t index = 0; index < p.steps.length; ++index) {
      const Step step = make_step(p.steps, index);
      if (b < step.rows) save_h_prev<typename Types::Accum>(p, step, b, j, 1);
    }
  });
}

template <class Types>
__global__ void __launch_bounds__(kBlockSize) states_kernel(const StepwiseForwardParams<Types> p) {
  using V = typename Types::Accum;
  for_units(p.layer.steps.batch, p.layer.hidden_size, [&](int64_t b, int64_t j) {
    V cell_state = load_cell<V>(p.layer.c_0, b * p.layer.hidden_size + j, 1);
    for (int64_t index = 0; index < p.layer.steps.length; ++index) {
      const Step step = make_step(p.layer.steps, index);
      if (b >= step.rows) continue;
      const Gates<V> sum = preactivations_of(p, step.offset + b, j);
      update_cell<V>(p.layer, step, b, j, sum, &cell_state, 1);
    }
  });
}

// total: sequences times units.
template <class... Params, class... Arguments>
cudaError_t launch(void (*kernel)(Params...), int64_t total, cudaStream_t stream,
                   const Arguments&... arguments) {
  const int64_t blocks = (total + kBlockSize - 1) / kBlockSize;
  constexpr int64_t most = 1 << 30;  // of the grid's x dimension; threads then take several units
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks < most ? blocks : most));
  config.blockDim = dim3(kBlockSize);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

template <class Types>
cudaError_t StepwiseLaunch<Types>::start(const Forward& p, const Step& first, cudaStream_t stream) {
  return launch(start_kernel<Types>, p.layer.steps.batch * p.layer.hidden_size, stream, p, first);
}
template <class Types>
cudaError_t StepwiseLaunch<Types>::forward(const Forward& p, const Step& step,
                                           cudaStream_t stream) {
  return launch(forward_kernel<Types>, step.rows * p.layer.hidden_size, stream, p, step);
}
template <class Types>
cudaError_t StepwiseLaunch<Types>::emit(const Forward& p, const Step& step, cudaStream_t stream) {
  return launch(emit_kernel<Types>, step.rows * p.layer.projection_size, stream, p, step);
}
template <class Types>
cudaError_t StepwiseLaunch<Types>::collect(const Backward& p, const Step& step,
                                           cudaStream_t stream) {
  return launch(collect_kernel<Types>, step.rows * p.projection_size, stream, p, step);
}
template <class Types>
cudaError_t StepwiseLaunch<Types>::backward(const Backward& p, const Step& step,
                                            cudaStream_t stream) {
  return launch(backward_kernel<Types>, step.rows * p.hidden_size, stream, p, step);
}
template <class Types>
cudaError_t StepwiseLaunch<Types>::h_prev(const Backward& p, cudaStream_t stream) {
  return launch(h_prev_kernel<Types>, p.steps.batch * p.projection_size, stream, p);
}
template <class Types>
cudaError_t StepwiseLaunch<Types>::states(const Forward& p, cudaStream_t stream) {
  return launch(states_kernel<Types>, p.layer.steps.batch * p.layer.hidden_size, stream, p);
}

template struct StepwiseLaunch<Float>;
template struct StepwiseLaunch<Double>;
template struct StepwiseLaunch<HalfFloat>;
template struct StepwiseLaunch<BFloat16Float>;

std::vector<int> architectures() { return {__CUDA_ARCH_LIST__}; }

}  // namespace cuda
}  // namespace fused_lstm
