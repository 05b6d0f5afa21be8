// How a call is divided into the parts of kernels.h, and how these are run. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "cpu/kernels.h"

namespace fused_lstm::cpu {

// How the sequences and the hidden units of each direction are divided into parts.
struct Slices {
  std::vector<int64_t> batch, units;  // bounds
  bool parallel;

  int64_t batch_slices() const { return static_cast<int64_t>(batch.size()) - 1; }
  int64_t unit_slices() const { return static_cast<int64_t>(units.size()) - 1; }
  int64_t parts(int64_t directions) const { return directions * batch_slices() * unit_slices(); }
};

// Bounds of `slices` slices of B sequences with nearly the same number of rows each. offsets
// [T + 1]: the first row of each step of a packed sequence, or null.
inline std::vector<int64_t> slice_batch(int64_t T, int64_t B, const int64_t* offsets,
                                        int64_t slices) {
  std::vector<int64_t> bounds = {0};
  const int64_t N = offsets ? offsets[T] : T * B;
  int64_t sum = 0;     // rows of the sequences before b
  int64_t length = T;  // of sequence b: those of a packed batch only get shorter
  for (int64_t b = 0; b < B; ++b) {
    const int64_t slice = static_cast<int64_t>(bounds.size());
    if (slice < slices && b > bounds.back() && sum * slices >= N * slice) bounds.push_back(b);
    if (offsets) {
      while (length > 0 && offsets[length] - offsets[length - 1] <= b) --length;
    }
    sum += length;
  }
  bounds.push_back(B);
  return bounds;
}

// Bounds of `slices` slices of the hidden units: multiples of `block`, except H.
inline std::vector<int64_t> slice_units(int64_t H, int64_t slices, int64_t block) {
  const int64_t blocks = (H + block - 1) / block;
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i <= slices; ++i) {
    bounds.push_back(std::min(H, blocks * i / slices * block));
  }
  return bounds;
}

inline int64_t widest(const std::vector<int64_t>& bounds) {
  int64_t width = 0;
  for (size_t i = 1; i < bounds.size(); ++i) width = std::max(width, bounds[i] - bounds[i - 1]);
  return width;
}

// Runs `kernel` for every part of every direction. parallel_for(n, body) calls body(begin, end) for
// ranges of 0 .. n.
template <class Params, class ParallelFor>
void run_parts(void (*kernel)(const Params&, const Part&), const Params* params, int64_t directions,
               const Slices& slices, const ParallelFor& parallel_for) {
  const int64_t parts = slices.unit_slices();  // of a group, which share sequences and a barrier
  const int64_t groups = slices.batch_slices() * directions;
  std::optional<std::deque<Barrier>> barriers;
  if (parts > 1) {
    barriers.emplace();
    for (int64_t i = 0; i < groups; ++i) barriers->emplace_back(parts);
  }
  parallel_for(groups * parts, [&](int64_t begin, int64_t end) {
    // A thread that is given several parts of a group runs them as one. Its barrier cannot
    // deadlock: all threads are running (concurrent_threads), and all go through the groups in the
    // same order.
    while (begin < end) {
      const int64_t group = begin / parts, first = begin % parts;
      const int64_t last = std::min(parts, first + end - begin);
      const int64_t slice = group % slices.batch_slices();
      kernel(params[group / slices.batch_slices()],
             {slices.batch[slice], slices.batch[slice + 1], slices.units[first], slices.units[last],
              barriers ? &(*barriers)[group] : nullptr, last - first, begin});
      begin += last - first;
    }
  });
}

}  // namespace fused_lstm::cpu
