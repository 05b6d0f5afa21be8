// Whole calls of the Python modules, from Python straight to the layers.
#pragma once

#include <Python.h>

namespace fused_lstm {

// plain_lstm, plain_cell and plain_frozen, for PyModule_AddFunctions: what FusedLSTM.forward,
// FusedLSTMCell.forward and FrozenLSTM.forward return, or None where the call is not plain: no
// mode, transform, subclass of Tensor or profiler takes part, the module's parameters are those
// that it was built with, and nothing raises. The modules then go their whole way, whose checks say
// what is wrong.
extern PyMethodDef module_calls[];

}  // namespace fused_lstm
