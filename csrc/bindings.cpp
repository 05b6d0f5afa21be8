// fused_lstm._C: loads the operators, and tells what is not a tensor.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "cpu/kernels.h"
#include "plan.h"
#ifdef FUSED_LSTM_WITH_CUDA
#include "cuda/kernels.h"
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

py::dict plan(bool cuda, int threads, bool team, int64_t length, int64_t batch, int64_t input,
              int64_t hidden, int64_t projection, int64_t directions, int64_t lanes) {
  const Plan plan = make_plan({cuda, threads, team, length, batch, length * batch, hidden,
                               projection, input, directions, lanes});
  py::dict result;
  result["kernel"] = kernel_name(plan.kernel);
  result["batch_slices"] = plan.batch_slices;
  result["unit_slices"] = plan.unit_slices;
  result["parallel"] = plan.parallel;
  result["chunk"] = plan.chunk;
  result["pack_input"] = plan.pack_input;
  result["pack_recurrent"] = plan.pack_recurrent;
  result["turn_input"] = plan.turn_input;
  result["turn_recurrent"] = plan.turn_recurrent;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Operators of fused_lstm, and facts about this build.";
  m.def("build_info", &build_info, "What this extension was built with.");
  m.def(
      "cpu_instruction_set", [] { return cpu::kernels().name; },
      "The instruction set of the CPU kernels; FUSED_LSTM_CPU_ISA forces a lower one.");
  m.def("plan", &plan, "The kernel that a call with padded input takes.", py::kw_only(),
        py::arg("cuda"), py::arg("threads"), py::arg("team"), py::arg("length"), py::arg("batch"),
        py::arg("input"), py::arg("hidden"), py::arg("projection"), py::arg("directions"),
        py::arg("lanes") = 16);
}

}  // namespace fused_lstm
