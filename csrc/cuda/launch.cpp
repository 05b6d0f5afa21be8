// The layer on a CUDA device: runs the pass that the plan names, on the caller's current stream.
// Nothing here synchronizes.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>

#include "cuda/cublas.h"
#include "cuda/passes.h"
#include "cuda/persistent/params.h"
#include "device/device.h"
#include "plan/kernel_override.h"

namespace fused_lstm {
namespace {

Plan plan_of(const Sizes& s, at::ScalarType storage, bool backward) {
  Problem problem = problem_of(s);
  problem.gpu = gpu_of(at::cuda::current_device());
  problem.backward = backward;
  problem.element_bytes = static_cast<int>(at::elementSize(storage));
  problem.tensor_cores = storage == at::kFloat ? cuda::allows_tf32() : storage != at::kDouble;
  problem.kernel_override = kernel_override();
  return make_plan(problem);
}

class CudaDevice final : public Device {
 public:
  at::ScalarType operand_type(at::ScalarType storage) const override { return storage; }

  void gemm(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
            bool accumulate) const override {
    const c10::cuda::CUDAGuard guard(out.device());
    const cuda::Cublas gemm(a.scalar_type());
    gemm(out, a, b, accumulate);
  }

  void forward(const Sequence& sequence, const ForwardTensors& layer) const override {
    const c10::cuda::CUDAGuard guard(layer.output.device());
    const Plan plan = plan_of(sequence.sizes, layer.output.scalar_type(), /*backward=*/false);
    if (plan.kernel == Kernel::stepwise) {
      cuda::stepwise_forward(sequence, layer);
    } else {
      cuda::persistent_forward(sequence, layer, plan);
    }
  }

  void recompute(const Sequence& sequence, const BackwardTensors& layer) const override {
    const c10::cuda::CUDAGuard guard(layer.gates.device());
    cuda::recompute(sequence, layer);
  }

  void backward(const Sequence& sequence, const BackwardTensors& layer) const override {
    const c10::cuda::CUDAGuard guard(layer.gates.device());
    const Plan plan = plan_of(sequence.sizes, layer.gates.scalar_type(), /*backward=*/true);
    if (plan.kernel == Kernel::stepwise) {
      cuda::stepwise_backward(sequence, layer);
    } else {
      cuda::persistent_backward(sequence, layer, plan);
    }
  }
};

}  // namespace

const Gpu& gpu_of(int index) {
  static std::mutex mutex;
  static std::map<int, Gpu> known;  // its references stay valid
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  const c10::cuda::CUDAGuard guard(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index)));
  const cudaDeviceProp& device = *at::cuda::getCurrentDeviceProperties();
  const int capability = device.major * 10 + device.minor;
  const int64_t shared_memory = static_cast<int64_t>(device.sharedMemPerBlockOptin);
  const int cluster = capability >= 90 ? cuda::largest_cluster(shared_memory) : 0;
  return known[index] = {capability, device.multiProcessorCount, shared_memory, cluster};
}

const Device& cuda_device() {
  static const CudaDevice device;
  return device;
}

}  // namespace fused_lstm
