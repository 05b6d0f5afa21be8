// The layer on a CUDA device: cuBLAS for every product, and the kernels of kernels.h for each
// step. All work goes to the caller's current stream; nothing here waits for the device.
#include "../device.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>
#include <c10/cuda/CUDAGuard.h>
#include <cublas_v2.h>

#include "kernels.h"

namespace fused_lstm {
namespace {

cudaDataType_t cuda_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return CUDA_R_32F;
    case at::kDouble:
      return CUDA_R_64F;
    case at::kHalf:
      return CUDA_R_16F;
    case at::kBFloat16:
      return CUDA_R_16BF;
    default:
      TORCH_CHECK(false, "fused_lstm: no CUDA kernel for dtype ", dtype);
  }
}

// Calls body(Types) for the types of a layer stored as `storage`.
template <class Body>
void with_types(at::ScalarType storage, const Body& body) {
  switch (storage) {
    case at::kFloat:
      return body(cuda::Float{});
    case at::kDouble:
      return body(cuda::Double{});
    case at::kHalf:
      return body(cuda::HalfFloat{});
    case at::kBFloat16:
      return body(cuda::BFloat16Float{});
    default:
      TORCH_CHECK(false, "fused_lstm: no CUDA kernel for dtype ", storage);
  }
}

// A factor of a product in memory: row by row, or column by column.
struct Factor {
  const void* data;
  int64_t leading;  // numbers from one row (column) to the next
  bool transposed;  // column by column
};

Factor factor_of(const at::Tensor& matrix) {
  if (matrix.stride(1) == 1 || matrix.size(1) == 1) {  // the stride of one number says nothing
    return {matrix.const_data_ptr(), std::max(matrix.stride(0), matrix.size(1)), false};
  }
  TORCH_INTERNAL_ASSERT(matrix.stride(0) == 1 || matrix.size(0) == 1,
                        "a factor must be dense one way or the other");
  return {matrix.const_data_ptr(), std::max(matrix.stride(1), matrix.size(0)), true};
}

// cuBLAS on the current stream, with factors of one type. Sums are in float32 or wider; TF32
// exactly where nn.LSTM would use it.
class Products {
 public:
  explicit Products(at::ScalarType operand)
      : handle_(at::cuda::getCurrentCUDABlasHandle()),
        operand_(cuda_type(operand)),
        is_double_(operand == at::kDouble) {
    const bool tf32 =
        operand == at::kFloat && at::globalContext().allowTF32CuDNN(at::Float32Op::RNN);
    compute_ = is_double_ ? CUBLAS_COMPUTE_64F
               : tf32     ? CUBLAS_COMPUTE_32F_FAST_TF32
                          : CUBLAS_COMPUTE_32F;
    // PyTorch sets the mode anew whenever it takes the handle, so there is nothing to restore.
    TORCH_CUDABLAS_CHECK(cublasSetMathMode(
        handle_, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                           CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  }

  // out [M, N] (+)= a [M, K] b [K, N]; out lies row by row without gaps.
  void operator()(void* out, at::ScalarType out_type, int64_t M, int64_t N, int64_t K,
                  const Factor& a, const Factor& b, bool accumulate) const {
    if (M == 0 || N == 0) return;
    const float one = 1, beta = accumulate ? 1 : 0;
    const double one_double = 1, beta_double = beta;
    // cuBLAS thinks column by column: it sees every matrix transposed, and out' = b' a'.
    TORCH_CUDABLAS_CHECK(cublasGemmEx_64(
        handle_, b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
        N, M, K, is_double_ ? static_cast<const void*>(&one_double) : &one, b.data, operand_,
        b.leading, a.data, operand_, a.leading,
        is_double_ ? static_cast<const void*>(&beta_double) : &beta, out, cuda_type(out_type), N,
        compute_, CUBLAS_GEMM_DEFAULT));
  }

 private:
  cublasHandle_t handle_;
  cudaDataType_t operand_;
  bool is_double_;
  cublasComputeType_t compute_;
};

void check_launch(cudaError_t error, const char* what, const Sizes& s) {
  TORCH_CHECK(error == cudaSuccess, "fused_lstm: the ", what, " launch of the streamed kernels (T ",
              s.T, ", B ", s.B, ", H ", s.H, ", P ", s.P, ") failed: ", cudaGetErrorString(error));
}

class CudaDevice final : public Device {
 public:
  at::ScalarType operand_type(at::ScalarType storage) const override { return storage; }

  void product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
               bool accumulate) const override {
    const c10::cuda::CUDAGuard guard(out.device());
    if (a.size(1) == 0) {
      if (!accumulate) out.zero_();
      return;
    }
    const Products products(a.scalar_type());
    products(out.data_ptr(), out.scalar_type(), a.size(0), b.size(1), a.size(1), factor_of(a),
             factor_of(b), accumulate);
  }

  void forward(const Sequence& sequence, const LayerForward& layer) const override {
    const Sizes& s = sequence.sizes;
    const c10::cuda::CUDAGuard guard(layer.output.device());
    const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
    const at::ScalarType storage = layer.output.scalar_type();
    const at::ScalarType accum = accum_type(storage);
    const Products products(storage);
    const at::TensorOptions operands = layer.output.options();
    const at::TensorOptions accums = operands.dtype(accum);

    const at::Tensor hidden = layer.hidden_0.clone();
    const at::Tensor cell_state = layer.cell_0.to(accum, /*non_blocking=*/false, /*copy=*/true);
    if (const auto from_zero = sequence.starts_from_zero()) {
      hidden.select(0, 0).masked_fill_(from_zero->unsqueeze(1), 0);
    }
    at::Tensor unprojected, projection;
    if (s.projected) {
      unprojected = allocate({s.B, s.H}, operands);
      projection = allocate({s.B, s.P}, accums);
    }
    // Where the types agree, the activations overwrite the preactivations.
    const bool in_place = layer.gates.defined() && storage == accum;
    const at::Tensor input = layer.input.view({s.N, s.D});

    with_types(storage, [&](auto types) {
      using Types = decltype(types);
      using Storage = typename Types::Storage;
      using Accum = typename Types::Accum;
      using Operand = typename Types::Operand;
      for (int64_t d = 0; d < s.directions; ++d) {
        const Weights& w = layer.weights[d];
        at::Tensor preactivations = in_place ? layer.gates.select(0, d).view({s.N, 4 * s.H})
                                             : allocate({s.N, 4 * s.H}, accums);  // [N, 4H]
        product(preactivations, input, w.ih.t(), /*accumulate=*/false);
        cuda::StreamedForward<Types> p = {};
        p.layer = forward_params<Types>(sequence, layer, d);
        p.layer.hidden_stride = s.P;
        p.layer.cell_state = pointer<Accum>(cell_state, d);
        p.layer.unprojected = pointer<Operand>(unprojected);
        p.layer.projection = pointer<Accum>(projection);
        p.preactivations = pointer<Accum>(preactivations);
        p.bias_ih = pointer<Storage>(w.bias_ih);
        p.bias_hh = pointer<Storage>(w.bias_hh);
        p.hidden = pointer<Operand>(hidden, d);
        for (int64_t index = 0; index < s.T; ++index) {
          const Step step = make_step(p.layer.steps, index);
          products(pointer<Accum>(preactivations) + step.offset * 4 * s.H, accum, step.rows,
                   4 * s.H, s.P, {p.hidden, s.P, false}, {w.hh.const_data_ptr(), s.P, true},
                   /*accumulate=*/true);
          check_launch(cuda::Launch<Types>::forward(p, step, stream), "forward", s);
          if (s.projected) {
            products(p.layer.projection, accum, step.rows, s.P, s.H,
                     {p.layer.unprojected, s.H, false}, {w.hr.const_data_ptr(), s.H, true},
                     /*accumulate=*/false);
            check_launch(cuda::Launch<Types>::emit(p, step, stream), "projection", s);
          }
        }
      }
    });
  }

  void backward(const Sequence& sequence, const LayerBackward& layer) const override {
    const Sizes& s = sequence.sizes;
    const c10::cuda::CUDAGuard guard(layer.gates.device());
    const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
    const at::ScalarType storage = layer.gates.scalar_type();
    const at::ScalarType accum = accum_type(storage);
    const Products products(storage);
    at::Tensor grad_unprojected;
    if (s.projected) grad_unprojected = allocate({s.B, s.H}, layer.grad_hidden.options());

    with_types(storage, [&](auto types) {
      using Types = decltype(types);
      for (int64_t d = 0; d < s.directions; ++d) {
        const Weights& w = layer.weights[d];
        BackwardParams<Types> p = backward_params<Types>(sequence, layer, d);
        p.grad_unprojected = pointer<typename Types::Accum>(grad_unprojected);
        for (int64_t index = s.T - 1; index >= 0; --index) {
          const Step step = make_step(p.steps, index);
          if (s.projected) {
            check_launch(cuda::Launch<Types>::collect(p, step, stream), "gradient projection", s);
            products(p.grad_unprojected, accum, step.rows, s.H, s.P,
                     {p.grad_projection + step.offset * s.P, s.P, false},
                     {w.hr.const_data_ptr(), s.H, false}, /*accumulate=*/false);
          }
          check_launch(cuda::Launch<Types>::backward(p, step, stream), "backward", s);
          products(p.grad_hidden, accum, step.rows, s.P, 4 * s.H,
                   {p.grad_preactivations + step.offset * 4 * s.H, 4 * s.H, false},
                   {w.hh.const_data_ptr(), s.P, false}, /*accumulate=*/true);
        }
      }
    });
  }
};

}  // namespace

const Device& cuda_device() {
  static const CudaDevice device;
  return device;
}

}  // namespace fused_lstm
