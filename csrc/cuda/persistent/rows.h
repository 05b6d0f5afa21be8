// Where a persistent kernel is in time: the rows of a step, which sequences have it, where episodes
// start. Free of torch.
//
// kRagged: the sequences are packed, or have lengths or resets; else every sequence has every step.
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

// The rows of one step: of sequences 0 .. count - 1, from `first` on.
struct Rows {
  int first, count;
};

template <bool kRagged>
class Timeline {
 public:
  __device__ __forceinline__ explicit Timeline(const Steps& steps)
      : length(in_register(static_cast<int>(steps.length))),
        batch(in_register(static_cast<int>(steps.batch))),
        reverse(in_register(static_cast<int>(steps.reverse)) != 0),
        offsets_(steps.offsets) {}

  const int length;  // T
  const int batch;   // B
  const bool reverse;

  __device__ __forceinline__ int time(int index) const {
    return reverse ? length - 1 - index : index;
  }
  // Of the step at `index` in processing order; none outside the layer's time.
  __device__ __forceinline__ Rows rows(int index) const {
    const int t = time(index);
    if (t < 0 || t >= length) return {0, 0};
    if (kRagged && offsets_) {
      const int first = static_cast<int>(offsets_[t]);
      return {first, static_cast<int>(offsets_[t + 1]) - first};
    }
    return {t * batch, batch};
  }
  // Of the step at `index`, whose neighbour at index - direction has `rows`.
  __device__ __forceinline__ Rows rows_after(const Rows& its, int index, int direction) const {
    if (kRagged) return rows(index);
    return {its.first + (reverse ? -batch : batch) * direction, batch};
  }

 private:
  const int64_t* offsets_;
};

// The part of the boundaries that a thread needs of one sequence.
template <bool kRagged>
class Episodes {
 public:
  __device__ __forceinline__ Episodes(const Boundaries& boundaries,
                                      const Timeline<kRagged>& timeline, int b) {
    if (!kRagged) return;
    length_ = boundaries.lengths && b < timeline.batch ? static_cast<int>(boundaries.lengths[b])
                                                       : timeline.length;
    reset_ = boundaries.reset && b < timeline.batch
                 ? reinterpret_cast<const uint8_t*>(boundaries.reset) + b
                 : nullptr;
  }
  Episodes() = default;

  // Whether the sequence has the step.
  __device__ __forceinline__ bool valid(const Rows& rows, int b, int t) const {
    return !kRagged || (b < rows.count && t < length_);
  }

  // Reads, ahead of its use, what says whether an episode starts at the step `index`: the mask's
  // row of the boundary, as starts_episode.
  __device__ __forceinline__ void load_start(const Timeline<kRagged>& timeline, int index) {
    if (!kRagged) return;
    boundary_ = timeline.time(index) + timeline.reverse;
    mask_ = 0;
    if (reset_ && boundary_ >= 0 && boundary_ < timeline.length && index >= 0 &&
        index < timeline.length) {
      mask_ = *row_of(reset_, boundary_, timeline.batch);
    }
  }
  // Whether one starts at the step of the last load_start.
  __device__ __forceinline__ bool starts() const {
    return kRagged && mask_ != 0 && boundary_ < length_;
  }

 private:
  int length_, boundary_;
  const uint8_t* reset_;
  uint8_t mask_;
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
