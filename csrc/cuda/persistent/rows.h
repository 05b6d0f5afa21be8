// Where a persistent kernel is in time: the rows of a step, and which sequences have it. Free of
// torch.
#pragma once

#include "core/sequence.h"
#include "cuda/ptx.h"

namespace fused_lstm {
namespace cuda {
namespace {

// Elements before row `row` of a matrix with rows of `width`.
__device__ __forceinline__ int64_t offset_of(int row, int width) {
  return static_cast<int64_t>(row) * width;
}

// The rows of one step: of sequences 0 .. count - 1, from `first` on. No rows outside the layer's
// time.
struct Rows {
  int first, count;
};

__device__ __forceinline__ int time_of(const Steps& steps, int index) {
  return steps.reverse ? static_cast<int>(steps.length) - 1 - index : index;
}

// Of the step at `index` in processing order.
__device__ __forceinline__ Rows rows_of(const Steps& steps, int index) {
  const int t = time_of(steps, index);
  if (t < 0 || t >= steps.length) return {0, 0};
  if (steps.offsets) {
    const int first = static_cast<int>(steps.offsets[t]);
    return {first, static_cast<int>(steps.offsets[t + 1]) - first};
  }
  return {t * static_cast<int>(steps.batch), static_cast<int>(steps.batch)};
}

// The valid steps of sequence b: t < valid_length.
__device__ __forceinline__ int valid_length(const Boundaries& boundaries, const Steps& steps, int b) {
  return static_cast<int>(boundaries.lengths && b < steps.batch ? boundaries.lengths[b]
                                                               : steps.length);
}

// Whether an episode starts at the step `index` of sequence b: as starts_episode, whose mask is read
// ahead of its use. `mask` is a byte of boundaries.reset, or 0.
struct EpisodeStart {
  int boundary;  // t of the mask's row
  uint8_t mask;
};
__device__ __forceinline__ EpisodeStart load_episode_start(const Boundaries& boundaries,
                                                           const Steps& steps, int index, int b) {
  const int t = time_of(steps, index);
  EpisodeStart start = {steps.reverse ? t + 1 : t, 0};
  if (boundaries.reset && index >= 0 && index < steps.length && start.boundary < steps.length &&
      b < steps.batch) {
    start.mask =
        reinterpret_cast<const uint8_t*>(boundaries.reset)[start.boundary * steps.batch + b];
  }
  return start;
}
__device__ __forceinline__ bool starts(const EpisodeStart& start, int length) {
  return start.mask != 0 && start.boundary < length;
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
