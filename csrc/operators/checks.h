// Checks of an operator's arguments; each error names the argument, what it is and what it must be.
#pragma once

#include <ATen/core/Tensor.h>

#include "device/device.h"
#include "operators/arguments.h"

namespace fused_lstm {

void check_place(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                 const at::Tensor& input);
void check_mask(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                at::ScalarType dtype, const at::Tensor& input);

// T, B and N of `input`, [T, B, D] or [N, D] with batch_sizes, and the first row of each step of a
// packed sequence.
void read_steps(const at::Tensor& input, const LayerOptions& options, Sequence& sequence);
// lengths [B] and reset [T, B] of such a call.
void read_boundaries(const at::Tensor& input, const LayerOptions& options, Sequence& sequence);

}  // namespace fused_lstm
