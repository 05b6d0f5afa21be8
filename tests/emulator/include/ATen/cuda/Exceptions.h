#pragma once

#include <c10/util/Exception.h>

#define TORCH_CUDABLAS_CHECK(call) \
  TORCH_CHECK((call) == CUBLAS_STATUS_SUCCESS, "emulated cuBLAS: invalid arguments")
