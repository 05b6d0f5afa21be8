// fused_lstm._C: loads the operators, and tells what is not a tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <string>
#include <tuple>

#include "cpu/kernels.h"
#include "device/device.h"
#include "device/pool.h"
#include "operators/frozen.h"
#include "operators/frozen_fragments.h"
#include "operators/module_calls.h"
#include "operators/stream_type.h"
#include "plan/kernel_override.h"
#include "plan/measured.h"
#include "plan/plan.h"
#ifdef FUSED_LSTM_WITH_CUDA
#include "cuda/stepwise/params.h"
#endif

namespace py = pybind11;

namespace fused_lstm {
namespace {

py::dict build_info() {
  py::dict info;
  py::list architectures;  // "9.0" for compute capability 9.0; none without CUDA
#ifdef FUSED_LSTM_WITH_CUDA
  for (const int number : cuda::architectures()) {
    architectures.append(std::to_string(number / 100) + "." + std::to_string(number / 10 % 10));
  }
#endif
  info["cuda"] = py::len(architectures) > 0;
  info["cuda_architectures"] = architectures;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["torch_version"] = TORCH_VERSION;
  info["cxx_standard"] = __cplusplus / 100 % 100;
  info["compiler"] = __VERSION__;
  return info;
}

// The members of Gpu: compute capability, multiprocessors, bytes of shared memory of a block,
// blocks of a cluster, clusters of each size (None: as many as there are multiprocessors for), and
// of each refusal the kernel, the blocks and the obstacle.
using GpuFacts = std::tuple<int, int, int64_t, int, std::optional<std::array<int, kClusterSizes>>,
                            std::vector<std::tuple<std::string, int64_t, std::string>>>;

// Valid as long as `facts`, whose texts it uses.
Gpu gpu_from(const GpuFacts& facts) {
  const auto& [capability, multiprocessors, shared_memory, largest, clusters, refusals] = facts;
  Gpu gpu = {};
  gpu.capability = capability;
  gpu.multiprocessors = multiprocessors;
  gpu.shared_memory = shared_memory;
  gpu.largest_cluster = largest;
  for (int i = 0; i < kClusterSizes; ++i) {
    gpu.clusters[i] = clusters ? (*clusters)[i] : multiprocessors / (2 << i);
  }
  for (const auto& [name, blocks, obstacle] : refusals) {
    const std::optional<Kernel> kernel = kernel_named(name);
    if (!kernel || !is_gpu_kernel(*kernel) || *kernel == Kernel::stepwise) {
      throw py::value_error("a refused kernel is '" + name + "', must be block, cluster or grid");
    }
    gpu.refusals[refusal_index(*kernel)] = {blocks, obstacle.c_str()};
  }
  return gpu;
}

Problem problem_for(const std::optional<Gpu>& gpu, int64_t length, int64_t batch, int64_t input,
                    int64_t hidden, int64_t projection, int64_t directions) {
  Problem problem = {};
  problem.gpu = gpu;
  problem.length = length;
  problem.batch = batch;
  problem.rows = length * batch;
  problem.input = input;
  problem.hidden = hidden;
  problem.projection = projection;
  problem.projected = projection != hidden;
  problem.directions = directions;
  return problem;
}

// Of a device "cpu" or "cuda": up to which hidden size the operator stack may be quicker.
int64_t largest_stacked_on(const std::string& device, int element_bytes) {
#ifdef FUSED_LSTM_WITH_CUDA
  if (device == "cuda") return cuda_device().largest_stacked(element_bytes);
#endif
  return device == "cpu" ? cpu_device().largest_stacked(element_bytes) : 0;
}

py::dict machine() {
  const Machine& m = cpu_machine();
  py::dict figures;
  for (const auto& [name, value] : figures_of(m)) figures[py::str(name)] = value;
  figures["cache_bytes"] = m.cache_bytes;
  figures["read_gbps"] = m.read_gbps;
  return figures;
}

// The machine is this one, with the figures of `machine_figures` replaced (plan/cpu_machine.h).
py::dict cpu_plan(int threads, bool concurrent_threads, int64_t length, int64_t batch,
                  int64_t input, int64_t hidden, int64_t projection, int64_t directions,
                  bool backward, int element_bytes, int operand_bytes, bool frozen,
                  const std::string& machine_figures) {
  Problem problem = problem_for({}, length, batch, input, hidden, projection, directions);
  problem.machine = cpu_machine();
  from_text(machine_figures, problem.machine);
  problem.threads = threads;
  problem.concurrent_threads = concurrent_threads;
  problem.backward = backward;
  problem.element_bytes = element_bytes;
  problem.operand_bytes = operand_bytes;
  problem.frozen = frozen;
  const Plan plan = make_plan(problem);
  py::dict result;
  result["kernel"] = kernel_name(plan.kernel);
  result["batch_slices"] = plan.batch_slices;
  result["unit_slices"] = plan.unit_slices;
  result["parallel"] = plan.parallel;
  result["chunk"] = plan.chunk;
  result["input_gemm"] = gemm_name(plan.input_gemm);
  result["recurrent_gemm"] = gemm_name(plan.recurrent_gemm);
  result["microseconds"] = plan.microseconds;
  return result;
}

py::dict facts_of(const Candidate& candidate) {
  py::dict one;
  one["kernel"] = kernel_name(candidate.kernel);
  one["obstacle"] = candidate.obstacle ? py::object(py::str(candidate.obstacle)) : py::none();
  one["microseconds"] = candidate.microseconds;
  one["blocks"] = candidate.placement.blocks;
  one["units"] = candidate.placement.units;
  one["slices"] = candidate.placement.slices;
  one["sequences"] = candidate.placement.sequences;
  one["shared_memory"] = candidate.shared_memory;
  return one;
}

// Of a stack of so many layers: with "stack", how the first ones go at once.
py::dict gpu_plan(const GpuFacts& gpu, int64_t length, int64_t batch, int64_t input, int64_t hidden,
                  int64_t projection, int64_t directions, bool backward, int element_bytes,
                  bool tensor_cores, bool ragged, const std::optional<std::string>& kernel_override,
                  int64_t layers) {
  Problem problem =
      problem_for(gpu_from(gpu), length, batch, input, hidden, projection, directions);
  problem.backward = backward;
  problem.element_bytes = element_bytes;
  problem.tensor_cores = tensor_cores;
  problem.ragged = ragged;
  if (kernel_override) problem.kernel_override = kernel_named(*kernel_override);
  py::list candidates;
  for (const Candidate& candidate : gpu_candidates(problem)) candidates.append(facts_of(candidate));
  const Plan plan = make_stack_plan(problem, layers);
  py::dict result;
  result["kernel"] = kernel_name(plan.kernel);
  result["candidates"] = candidates;
  result["layers"] = plan.layers;
  result["stack"] = py::none();
  problem.layers = plan.layers;
  for (const Candidate& candidate : gpu_candidates(problem)) {
    if (plan.layers > 1 && candidate.kernel == plan.kernel) result["stack"] = facts_of(candidate);
  }
  return result;
}

// What a plan knows of a CUDA device.
GpuFacts gpu_facts([[maybe_unused]] int index) {
#ifdef FUSED_LSTM_WITH_CUDA
  const Gpu gpu = gpu_of(index);
  GpuFacts facts = {gpu.capability,      gpu.multiprocessors, gpu.shared_memory,
                    gpu.largest_cluster, gpu.clusters,        {}};
  for (const Kernel kernel : {Kernel::block, Kernel::cluster, Kernel::grid}) {
    const Refusal& refusal = gpu.refusals[refusal_index(kernel)];
    if (refusal.blocks == 0) continue;
    std::get<5>(facts).emplace_back(kernel_name(kernel), refusal.blocks, refusal.obstacle);
  }
  return facts;
#else
  throw std::runtime_error("fused_lstm was built without CUDA");
#endif
}

// A problem as the table of measured kernels sees it: T, B, rows, D, H, P, directions; backward;
// bytes of an element; tensor cores.
using MeasuredProblem = std::tuple<std::array<int64_t, 7>, bool, int, bool>;

Problem problem_from(const MeasuredProblem& measured) {
  const auto& [sizes, backward, element_bytes, tensor_cores] = measured;
  Problem problem = problem_for({}, sizes[0], sizes[1], sizes[3], sizes[4], sizes[5], sizes[6]);
  problem.rows = sizes[2];
  problem.backward = backward;
  problem.element_bytes = element_bytes;
  problem.tensor_cores = tensor_cores;
  return problem;
}

std::optional<std::string> measured_kernel_name(int device, const MeasuredProblem& problem) {
  const std::optional<Kernel> kernel = measured_kernel(device, problem_from(problem));
  if (!kernel) return std::nullopt;
  return kernel_name(*kernel);
}

void set_measured_kernel_named(int device, const MeasuredProblem& problem,
                               const std::string& name) {
  const std::optional<Kernel> kernel = kernel_named(name);
  if (!kernel || !is_gpu_kernel(*kernel)) {
    throw py::value_error("kernel is '" + name + "', must be block, cluster, grid or stepwise");
  }
  set_measured_kernel(device, problem_from(problem), *kernel);
}

std::optional<std::string> kernel_override_name() {
  const std::optional<Kernel> kernel = kernel_override();
  if (!kernel) return std::nullopt;
  return kernel_name(*kernel);
}

void use_kernel(const std::optional<std::string>& name) {
  if (!name) return set_kernel_override(std::nullopt);
  const std::optional<Kernel> kernel = kernel_named(*name);
  if (!kernel || !is_gpu_kernel(*kernel)) {
    throw py::value_error("name is '" + *name +
                          "', must be block, cluster, grid, stepwise or None");
  }
  set_kernel_override(kernel);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Operators of fused_lstm, and facts about this build.";
  if (PyModule_AddFunctions(m.ptr(), module_calls) != 0) throw py::error_already_set();
  m.def("build_info", &build_info, "What this extension was built with.");
  m.def(
      "cpu_instruction_set", [] { return cpu::kernels().name; },
      "The instruction set of the CPU kernels; FUSED_LSTM_CPU_ISA forces a lower one.");
  m.def("largest_stacked", &largest_stacked_on,
        "The largest hidden size of a stack whose layers a device may compute at once; 0: of none.",
        py::arg("device"), py::arg("element_bytes"));
  m.def("cached_bytes", &cached_bytes, "Bytes that the pool keeps.");
  m.def("empty_cache", &empty_cache, "Gives them back to the system.");
  m.def("machine", &machine, "What a plan knows of this CPU.");
  m.def("cpu_plan", &cpu_plan, "How a call with padded input runs on a CPU.", py::kw_only(),
        py::arg("threads"), py::arg("concurrent_threads"), py::arg("length"), py::arg("batch"),
        py::arg("input"), py::arg("hidden"), py::arg("projection"), py::arg("directions"),
        py::arg("backward") = false, py::arg("element_bytes") = 4, py::arg("operand_bytes") = 4,
        py::arg("frozen") = false, py::arg("machine_figures") = "");
  m.def("gpu_plan", &gpu_plan, "Which kernel a call takes on a GPU, and what the others would be.",
        py::kw_only(), py::arg("gpu"), py::arg("length"), py::arg("batch"), py::arg("input"),
        py::arg("hidden"), py::arg("projection"), py::arg("directions"), py::arg("backward"),
        py::arg("element_bytes"), py::arg("tensor_cores"), py::arg("ragged") = false,
        py::arg("kernel_override") = py::none(), py::arg("layers") = 1);
  m.def("gpu", &gpu_facts, "What a plan knows of a CUDA device.", py::arg("index"));
  m.def("kernel_override", &kernel_override_name,
        "The kernel that GPU layers take where they can, or None.");
  m.def("measured_kernel", &measured_kernel_name, "The kernel measured to be the fastest, or None.",
        py::arg("device"), py::arg("problem"));
  m.def("set_measured_kernel", &set_measured_kernel_named, "Sets it.", py::arg("device"),
        py::arg("problem"), py::arg("kernel"));
  m.def("forget_measured_kernels", &forget_measured_kernels, "Forgets all of them.");
  m.def("use_kernel", &use_kernel, "Sets it.", py::arg("name").none(true));
  m.def("frozen_pack", &frozen_pack, "A layer's weights as packed bytes.", py::arg("weights"),
        py::arg("scales"), py::arg("format"), py::arg("directions"));
  m.def("frozen_unpack", &frozen_unpack, "Its weights and their scales.", py::arg("packed"));
  m.def("frozen_keeps_fragments", &frozen_keeps_fragments,
        "Whether layers frozen on a device keep fragments of weights, rather than packed bytes.",
        py::arg("device"));
  m.def("frozen_pack_fragments", &frozen_pack_fragments, "A layer's weights and their fragments.",
        py::arg("weights"), py::arg("directions"));
  m.def("frozen_step", &frozen_step, "A step of a stack of such layers; writes h_n and c_n.",
        py::arg("input"), py::arg("h_0"), py::arg("c_0"), py::arg("h_n"), py::arg("c_n"),
        py::arg("packed"), py::arg("hidden_size"), py::arg("proj_size"));
  add_stream_type(m);
  m.def("make_stream", &make_stream, "A Stream over packed layers.", py::arg("packed"),
        py::arg("batch_size"));
}

}  // namespace fused_lstm
