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

// Element [row, column] of a matrix, which may be null.
template <class T>
__device__ __forceinline__ T* element_at(T* matrix, int row, int width, int column) {
  constexpr int bytes = sizeof(T);
  return row_of(row_of(matrix, row, width * bytes), column, bytes);
}

// Elements before row `row` of a matrix with rows of `width`.
__device__ __forceinline__ int64_t offset_of(int row, int width) {
  return static_cast<int64_t>(row) * width;
}

// The lower half of an element of an array, which may be null.
__device__ __forceinline__ const uint32_t* low_word(const int64_t* array, int index) {
  return reinterpret_cast<const uint32_t*>(row_of(array, index, sizeof(int64_t)));
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
        first_time_(in_register(steps.reverse ? static_cast<int>(steps.length) - 1 : 0)),
        step_(in_register(steps.reverse ? -1 : 1)),
        row_step_(in_register(static_cast<int>(steps.reverse ? -steps.batch : steps.batch))),
        packed_(kRagged && steps.offsets),
        offsets_(steps.offsets) {}

  const int length;  // T
  const int batch;   // B

  // Of the step at `index` in processing order.
  __device__ __forceinline__ int time(int index) const { return first_time_ + step_ * index; }
  // Of the boundary before that step in processing order, as starts_episode has it.
  __device__ __forceinline__ int boundary(int index) const { return time(index) + (step_ < 0); }
  // None outside the layer's time.
  __device__ __forceinline__ Rows rows(int index) const {
    const int t = time(index);
    if (t < 0 || t >= length) return {0, 0};
    if (kRagged && offsets_) {
      const int first = static_cast<int>(offsets_[t]);
      return {first, static_cast<int>(offsets_[t + 1]) - first};
    }
    return {t * batch, batch};
  }

  // What memory has of a step's rows, as it was loaded.
  struct Loaded {
    uint32_t first, end;
  };
  __device__ __forceinline__ Loaded load_rows(int index) const {
    if (!kRagged) return {0, 0};
    const int t = time(index);
    const bool exists = packed_ && t >= 0 && t < length;
    return {load_if(exists, low_word(offsets_, t)), load_if(exists, low_word(offsets_, t + 1))};
  }
  // Of a step that load_rows has loaded, whose neighbour at its index - direction has `its` rows.
  // Where all sequences have every step, rows go on outside the layer's time.
  __device__ __forceinline__ Rows rows_after(const Rows& its, const Loaded& loaded,
                                             int direction) const {
    if (packed_) {
      return {static_cast<int>(loaded.first), static_cast<int>(loaded.end - loaded.first)};
    }
    return {its.first + row_step_ * direction, batch};
  }

 private:
  const int first_time_, step_, row_step_;
  const bool packed_;
  const int64_t* const offsets_;
};

// The part of the boundaries that a thread needs of one sequence.
template <bool kRagged>
class Episodes {
 public:
  __device__ __forceinline__ Episodes(const Boundaries& boundaries,
                                      const Timeline<kRagged>& timeline, int b) {
    if (!kRagged) return;
    const bool in_batch = b < timeline.batch;
    length_ =
        static_cast<int>(load_if(boundaries.lengths && in_batch, low_word(boundaries.lengths, b),
                                 static_cast<uint32_t>(timeline.length)));
    reset_ = boundaries.reset && in_batch ? reinterpret_cast<const uint8_t*>(boundaries.reset) + b
                                          : nullptr;
  }
  Episodes() = default;

  // Whether the sequence has the step.
  __device__ __forceinline__ bool valid(const Rows& rows, int b, int t) const {
    return !kRagged || (b < rows.count && t < length_);
  }

  // Loads what says whether an episode starts at the step `index`: the mask's row of the boundary,
  // as starts_episode.
  __device__ __forceinline__ void load_start(const Timeline<kRagged>& timeline, int index) {
    if (!kRagged) return;
    boundary_ = timeline.boundary(index);
    const bool exists = reset_ && boundary_ >= 0 && boundary_ < timeline.length && index >= 0 &&
                        index < timeline.length;
    mask_ = load_if(exists, row_of(reset_, boundary_, timeline.batch));
  }
  // Whether one starts at the step of the last load_start.
  __device__ __forceinline__ bool starts() const {
    return kRagged && mask_ != 0 && boundary_ < length_;
  }

 private:
  int length_, boundary_;
  const uint8_t* reset_;
  uint32_t mask_;
};

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
