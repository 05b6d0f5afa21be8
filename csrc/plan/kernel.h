// What a plan chooses from: the kernels, and how a CPU kernel multiplies by a weight. Free of
// torch.
#pragma once

#include <optional>
#include <string_view>

namespace fused_lstm {

enum class Kernel {
  direct,    // CPU, few sequences: dot products with the rows of weight_hh as nn.LSTM stores it
  panels,    // CPU: register tiles of sequences and hidden units over packed weights
  block,     // CUDA: all steps in one launch, the recurrent weights in each block
  cluster,   // CUDA: likewise, distributed over each cluster of blocks
  grid,      // CUDA: likewise, distributed over the whole GPU
  stepwise,  // CUDA: a GEMM and one fused pointwise launch for each step
};

const char* kernel_name(Kernel kernel);
std::optional<Kernel> kernel_named(std::string_view name);
bool is_gpu_kernel(Kernel kernel);

// How a CPU kernel multiplies by one weight [4H, depth].
enum class Gemm {
  dot,            // dot products with its rows, backward sums of them: for few rows of activations
  packed_ahead,   // all of it is packed into panels before the first step
  packed_on_use,  // each panel is packed where it is needed: for a weight that is used once
  transposed,     // not packed: the activations are transposed, a row a SIMD lane
  unpacked,       // backward, W [depth, columns]: tiles read vectors of its columns as stored
};

const char* gemm_name(Gemm gemm);

}  // namespace fused_lstm
