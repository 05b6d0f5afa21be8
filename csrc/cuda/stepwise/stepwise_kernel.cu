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
__global__ void __launch_bounds__(kBlockSize)
    forward_kernel(const StepwiseForwardParams<Types> p, const Step step) {
  using V = typename Types::Accum;
  const int64_t H = p.layer.hidden_size;
  for_units(step.rows, H, [&](int64_t b, int64_t j) {
    Gates<V> sum = load_gates<V>(p.preactivations + (step.offset + b) * 4 * H, H, j, 1);
    if (p.bias_ih) sum = add(sum, load_gates<V>(p.bias_ih, H, j, 1));
    if (p.bias_hh) sum = add(sum, load_gates<V>(p.bias_hh, H, j, 1));
    const Updated<V> updated =
        update_cell<V>(p.layer, step, b, j, sum, p.layer.cell_state + b * H + j, 1);
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

template <class Params>
cudaError_t launch(void (*kernel)(Params, Step), const Params& params, const Step& step,
                   int64_t units, cudaStream_t stream) {
  const int64_t blocks = (step.rows * units + kBlockSize - 1) / kBlockSize;
  constexpr int64_t most = 1 << 30;  // of the grid's x dimension; threads then take several units
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks < most ? blocks : most));
  config.blockDim = dim3(kBlockSize);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params, step);
}

}  // namespace

template <class Types>
cudaError_t Launch<Types>::forward(const StepwiseForwardParams<Types>& params, const Step& step,
                                   cudaStream_t stream) {
  return launch(forward_kernel<Types>, params, step, params.layer.hidden_size, stream);
}

template <class Types>
cudaError_t Launch<Types>::emit(const StepwiseForwardParams<Types>& params, const Step& step,
                                cudaStream_t stream) {
  return launch(emit_kernel<Types>, params, step, params.layer.projection_size, stream);
}

template <class Types>
cudaError_t Launch<Types>::collect(const BackwardParams<Types>& params, const Step& step,
                                   cudaStream_t stream) {
  return launch(collect_kernel<Types>, params, step, params.projection_size, stream);
}

template <class Types>
cudaError_t Launch<Types>::backward(const BackwardParams<Types>& params, const Step& step,
                                    cudaStream_t stream) {
  return launch(backward_kernel<Types>, params, step, params.hidden_size, stream);
}

template struct Launch<Float>;
template struct Launch<Double>;
template struct Launch<HalfFloat>;
template struct Launch<BFloat16Float>;

std::vector<int> architectures() { return {__CUDA_ARCH_LIST__}; }

}  // namespace cuda
}  // namespace fused_lstm
