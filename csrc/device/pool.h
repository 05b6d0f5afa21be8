// Memory of CPU tensors that live for a call or until its backward: gates, cell states, gradients
// of the gates, packed weights.
//
// The first touch of a page costs more than what a kernel then computes with it. So large blocks
// are kept when their tensor dies, for the next one of about their size, and lie in huge pages. The
// system may take back the pages of a block that is kept.
#pragma once

#include <ATen/core/Tensor.h>

namespace fused_lstm {

// As at::empty; small tensors come from torch's allocator.
at::Tensor allocate_pooled(at::IntArrayRef sizes, const at::TensorOptions& options);

// Bytes of the blocks that are kept, and the most that they may be: FUSED_LSTM_CACHE_MB megabytes,
// else a quarter of the machine's memory.
int64_t cached_bytes();
// Gives them back to the system.
void empty_cache();

}  // namespace fused_lstm
