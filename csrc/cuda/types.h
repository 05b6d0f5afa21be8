// The element types of the layers that the CUDA kernels support. Free of torch.
#pragma once

#include "core/numeric.h"

namespace fused_lstm {
namespace cuda {

using Float = Types<float, float, float>;
using Double = Types<double, double, double>;
using HalfFloat = Types<Half, float, Half>;
using BFloat16Float = Types<BFloat16, float, BFloat16>;

}  // namespace cuda
}  // namespace fused_lstm
