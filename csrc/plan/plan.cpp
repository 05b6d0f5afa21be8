#include "plan/plan.h"

namespace fused_lstm {

Plan make_plan(const Problem& problem) {
  return problem.gpu ? make_gpu_plan(problem) : make_cpu_plan(problem);
}

}  // namespace fused_lstm
