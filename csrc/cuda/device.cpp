// The layer on a CUDA device: cuBLAS for every product, and the kernels of kernels.h for each
// step. All work goes to the caller's current stream; nothing here waits for the device.
#include "../device.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>
#include <ATen/ops/empty.h>
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
  if (matrix.stride(1) == 1) {
    return {matrix.const_data_ptr(), std::max(matrix.stride(0), matrix.size(1)), false};
  }
  TORCH_INTERNAL_ASSERT(matrix.stride(0) == 1, "a factor must be dense one way or the other");
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

  void forward(const Sequence& sequence, std::vector<DirectionForward>& directions) const override {
    const Sizes& s = sequence.sizes;
    const c10::cuda::CUDAGuard guard(directions[0].output.device());
    const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
    const at::ScalarType storage = directions[0].output.scalar_type();
    const Products products(storage);
    const at::TensorOptions operands = directions[0].output.options();
    const at::TensorOptions accums = directions[0].cell_state.options();
    at::Tensor unprojected, projection;
    if (s.projected) {
      unprojected = at::empty({s.B, s.H}, operands);
      projection = at::empty({s.B, s.P}, accums);
    }

    with_types(storage, [&](auto types) {
      using Types = decltype(types);
      using Accum = typename Types::Accum;
      for (DirectionForward& d : directions) {
        d.preactivations = preactivations_of(s, d);
        product(d.preactivations, d.input, d.weight_ih.t(), /*accumulate=*/false);
        ForwardParams<Types> p = forward_params<Types>(sequence, d);
        p.unprojected = pointer<typename Types::Operand>(unprojected);
        p.projection = pointer<Accum>(projection);
        Accum* const preactivations = pointer<Accum>(d.preactivations);
        for (int64_t index = 0; index < s.T; ++index) {
          const Step step = make_step(p.steps, index);
          products(preactivations + step.offset * 4 * s.H, accum_type(storage), step.rows, 4 * s.H,
                   s.P, {p.hidden_state, s.P, false}, {p.weight_hh, s.P, true},
                   /*accumulate=*/true);
          check_launch(cuda::Launch<Types>::forward(p, step, stream), "forward", s);
          if (s.projected) {
            products(p.projection, accum_type(storage), step.rows, s.P, s.H,
                     {p.unprojected, s.H, false}, {p.weight_hr, s.H, true}, /*accumulate=*/false);
            check_launch(cuda::Launch<Types>::emit(p, step, stream), "projection", s);
          }
        }
      }
    });
  }

  void backward(const Sequence& sequence,
                std::vector<DirectionBackward>& directions) const override {
    const Sizes& s = sequence.sizes;
    const c10::cuda::CUDAGuard guard(directions[0].gates.device());
    const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
    const at::ScalarType storage = directions[0].gates.scalar_type();
    const Products products(storage);
    const at::TensorOptions accums = directions[0].grad_hidden.options();
    at::Tensor grad_unprojected;
    if (s.projected) grad_unprojected = at::empty({s.B, s.H}, accums);

    with_types(storage, [&](auto types) {
      using Types = decltype(types);
      for (const DirectionBackward& d : directions) {
        BackwardParams<Types> p = backward_params<Types>(sequence, d);
        p.grad_unprojected = pointer<typename Types::Accum>(grad_unprojected);
        for (int64_t index = s.T - 1; index >= 0; --index) {
          const Step step = make_step(p.steps, index);
          if (s.projected) {
            check_launch(cuda::Launch<Types>::collect(p, step, stream), "gradient projection", s);
            products(p.grad_unprojected, accum_type(storage), step.rows, s.H, s.P,
                     {p.grad_projection + step.offset * s.P, s.P, false}, {p.weight_hr, s.H, false},
                     /*accumulate=*/false);
          }
          check_launch(cuda::Launch<Types>::backward(p, step, stream), "backward", s);
          products(p.grad_hidden, accum_type(storage), step.rows, s.P, 4 * s.H,
                   {p.grad_preactivations + step.offset * 4 * s.H, 4 * s.H, false},
                   {p.weight_hh, s.P, false}, /*accumulate=*/true);
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
