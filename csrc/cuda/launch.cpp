// The layer on a CUDA device: runs the pass that the plan names, on the caller's current stream.
// Nothing here synchronizes.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>
#include <set>
#include <string>

#include "cuda/cublas.h"
#include "cuda/passes.h"
#include "cuda/persistent/packed_fragments.h"
#include "cuda/persistent/params.h"
#include "device/device.h"
#include "plan/kernel_override.h"
#include "plan/measured.h"

namespace fused_lstm {
namespace {

// GPUs as a plan sees them, by device index.
struct Known {
  std::mutex mutex;
  std::map<int, Gpu> gpus;
  std::set<std::string> obstacles;  // of their refusals
};
Known& known() {
  static Known only;
  return only;
}

// Keeps what the driver refused: no later call of the process tries it again.
void remember(int device, Kernel kernel, int64_t blocks, cudaError_t error) {
  const std::lock_guard<std::mutex> lock(known().mutex);
  const std::string obstacle =
      std::string("the driver refused its launch: ") + cudaGetErrorString(error);
  Refusal& its = known().gpus[device].refusals[refusal_index(kernel)];
  if (its.blocks > 0 && its.blocks <= blocks) return;  // by another thread
  its = {blocks, known().obstacles.insert(obstacle).first->c_str()};
}

// A pass on the current device.
Problem current_problem(const Sizes& s, at::ScalarType storage, bool backward, bool ragged) {
  Problem problem = problem_of(s);
  problem.backward = backward;
  problem.ragged = ragged;
  problem.element_bytes = static_cast<int>(at::elementSize(storage));
  problem.tensor_cores = storage == at::kFloat ? cuda::allows_tf32() : storage != at::kDouble;
  const int device = at::cuda::current_device();
  problem.kernel_override = kernel_override();
  if (!problem.kernel_override) problem.kernel_override = measured_kernel(device, problem);
  problem.gpu = gpu_of(device);
  return problem;
}

bool is_ragged(const Sequence& sequence) {
  return sequence.sizes.packed || sequence.lengths || sequence.reset;
}

// Runs the pass that the plan names of the first of so many layers, and the plan's next choice if
// the driver refuses it. Returns how many layers have run.
template <class Persistent, class Stepwise>
int run(Problem problem, size_t layers, const Persistent& persistent, const Stepwise& stepwise) {
  const int device = at::cuda::current_device();
  for (;;) {
    const Plan plan = make_stack_plan(problem, static_cast<int64_t>(layers));
    if (plan.kernel == Kernel::stepwise) {
      stepwise(plan);
      return 1;
    }
    const cudaError_t error = persistent(plan);
    if (error == cudaSuccess) return plan.layers;
    problem.layers = plan.layers;
    remember(device, plan.kernel, blocks_together(problem, plan.kernel, plan.placement), error);
    problem.gpu = gpu_of(device);
  }
}

class CudaDevice final : public Device {
 public:
  at::ScalarType operand_type(at::ScalarType storage) const override { return storage; }

  void gemm(at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
            bool accumulate) const override {
    const c10::cuda::CUDAGuard guard(out.device());
    const cuda::Cublas gemm(a.scalar_type(), cuda::allows_tf32());
    gemm(out, a, b, accumulate);
  }

  // Without boundaries the hidden states that enter the steps are rows of h_0 and of the output.
  bool reads_h_prev(const Sequence& sequence, at::ScalarType) const override {
    return is_ragged(sequence);
  }
  // The persistent kernels have them in registers.
  bool reads_state_gradients() const override { return false; }

  void forward(const Sequence& sequence, const ForwardTensors& layer) const override {
    forward_layers(sequence, layer);
  }

  int64_t largest_stacked(int element_bytes) const override {
    return fused_lstm::largest_stacked(element_bytes);
  }
  void forward_stack(const Sequence& sequence,
                     const std::vector<ForwardTensors>& layers) const override {
    forward_layers(sequence, layers);
  }

  bool keeps_fragments() const override { return true; }
  at::Tensor fragments(const Sizes& sizes, const std::vector<Weights>& weights) const override {
    const at::Tensor& hh = weights.front().hh;
    const c10::cuda::CUDAGuard guard(hh.device());
    const Plan plan = make_plan(current_problem(sizes, hh.scalar_type(), /*backward=*/false,
                                                /*ragged=*/false));
    if (plan.kernel == Kernel::stepwise) return {};
    return cuda::pack_fragments(plan.kernel, plan.placement, weights);
  }

  void recompute(const Sequence& sequence, const BackwardTensors& layer) const override {
    const c10::cuda::CUDAGuard guard(layer.gates.device());
    cuda::recompute(sequence, layer);
  }

  void backward(const Sequence& sequence, const BackwardTensors& layer) const override {
    backward_layers(sequence, layer, 1);
  }
  // The stack's kernels leave no gradient of the initial states where episodes start from them.
  void backward_stack(const Sequence& sequence,
                      std::vector<BackwardTensors>& layers) const override {
    const bool starts_from_initial = sequence.reset && sequence.reset_to_initial;
    for (size_t end = layers.size(); end > 0;) {
      const at::ArrayRef<BackwardTensors> these =
          at::ArrayRef<BackwardTensors>(layers).slice(0, end);
      end -= backward_layers(sequence, these, starts_from_initial ? 1 : end);
      if (end == 0) break;
      const at::Tensor gradient = input_gradient(sequence_of_layer(sequence, end), layers[end]);
      layers[end - 1].grad_output = gradient.to(layers[end].gates.scalar_type());
    }
  }

 private:
  // One layer, or a stack from its first one on.
  static void forward_layers(const Sequence& sequence, at::ArrayRef<ForwardTensors> layers) {
    const c10::cuda::CUDAGuard guard(layers.front().output.device());
    for (size_t k = 0; k < layers.size();) {
      const Sequence its = sequence_of_layer(sequence, k);
      k += run(
          current_problem(its.sizes, layers[k].output.scalar_type(), /*backward=*/false,
                          is_ragged(its)),
          layers.size() - k,
          [&](const Plan& plan) {
            return cuda::persistent_forward(its, layers.slice(k, plan.layers), plan);
          },
          [&](const Plan& plan) { cuda::stepwise_forward(its, layers[k], plan); });
    }
  }
  // The last of them, at most so many. Returns how many have run.
  static int backward_layers(const Sequence& sequence, at::ArrayRef<BackwardTensors> layers,
                             size_t most) {
    const BackwardTensors& last = layers.back();
    const c10::cuda::CUDAGuard guard(last.gates.device());
    const bool ragged =
        is_ragged(sequence) || last.grad_cells.defined() || last.grad_gates.defined();
    return run(
        current_problem(sequence.sizes, last.gates.scalar_type(), /*backward=*/true, ragged), most,
        [&](const Plan& plan) {
          return cuda::persistent_backward(sequence, layers.slice(layers.size() - plan.layers),
                                           plan);
        },
        [&](const Plan& plan) { cuda::stepwise_backward(sequence, last, plan); });
  }

 protected:
  // While they lie in the L2 cache, adding up the rows twice takes less than a copy's launch.
  void bias_gradients(const at::Tensor& grad, Weights& weights) const override {
    constexpr int64_t most = 1 << 20;  // elements: 4 MB in float32
    if (grad.numel() > most) return Device::bias_gradients(grad, weights);
    const at::Tensor both = grad.unsqueeze(0)
                                .expand({2, grad.size(0), grad.size(1)})
                                .sum(1, /*keepdim=*/false, accum_type(grad.scalar_type()));
    weights.bias_ih = both.select(0, 0);
    weights.bias_hh = both.select(0, 1);
  }
};

}  // namespace

Gpu gpu_of(int index) {
  const std::lock_guard<std::mutex> lock(known().mutex);
  const auto found = known().gpus.find(index);
  if (found != known().gpus.end()) return found->second;
  const c10::cuda::CUDAGuard guard(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index)));
  const cudaDeviceProp& device = *at::cuda::getCurrentDeviceProperties();
  Gpu gpu = {};
  gpu.capability = device.major * 10 + device.minor;
  gpu.multiprocessors = device.multiProcessorCount;
  gpu.shared_memory = static_cast<int64_t>(device.sharedMemPerBlockOptin);
  cuda::ask_driver(gpu);
  return known().gpus[index] = gpu;
}

const Device& cuda_device() {
  static const CudaDevice device;
  return device;
}

}  // namespace fused_lstm
