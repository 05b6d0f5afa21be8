// Runs a package that AOTInductor made of a model with FusedLSTM in it, without a line of Python:
//
//   aoti PACKAGE.pt2 INPUT.pt LIBRARY ...
//
// INPUT is a tensor that torch.save wrote. The libraries are opened in order: the last one is
// fused_lstm/_C*.so, which has the package's operators; it is a module of Python too, so that
// libpython and libtorch_python.so come before it. (No interpreter is started.) Prints the outputs,
// a tensor a line. Built against the torch that compiled the package:
//
//   TORCH=$(python -c "import torch; print(torch.__path__[0])")
//   c++ -std=c++20 aoti.cpp -I$TORCH/include -I$TORCH/include/torch/csrc/api/include
//       -L$TORCH/lib -Wl,-rpath,$TORCH/lib -ltorch -ltorch_cpu -lc10 -ldl -o aoti
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/serialize.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

at::Tensor read_tensor(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::pickle_load(bytes).toTensor();
}

void print_line(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kFloat).contiguous();
  const float* const data = values.const_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) std::printf("%s%.9g", i ? "," : "", data[i]);
  std::printf("\n");
}

int run(const std::vector<std::string>& arguments) {
  for (size_t i = 2; i < arguments.size(); ++i) {
    if (!dlopen(arguments[i].c_str(), RTLD_NOW | RTLD_GLOBAL)) {
      std::fprintf(stderr, "aoti: %s\n", dlerror());
      return 1;
    }
  }
  const c10::InferenceMode no_gradients;
  torch::inductor::AOTIModelPackageLoader package(arguments[0]);
  for (const at::Tensor& output : package.run({read_tensor(arguments[1])})) print_line(output);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::fprintf(stderr, "aoti: PACKAGE.pt2 INPUT.pt LIBRARY ...\n");
    return 1;
  }
  try {
    return run({arguments + 1, arguments + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "aoti: %s\n", error.what());
    return 1;
  }
}
