// Streams of frozen layers as a Python type, whose calls go straight to frozen::Stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <vector>

namespace fused_lstm {

// Adds the type Stream to a module.
void add_stream_type(pybind11::module_& m);

// A Stream of `batch_size` sequences over packed layers (operators/frozen.h), which it keeps.
pybind11::object make_stream(const std::vector<at::Tensor>& packed, int64_t batch_size);

}  // namespace fused_lstm
