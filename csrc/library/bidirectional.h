// A stack of frozen layers of two directions, over whole sequences that start from zeros.
#pragma once

#include <cstdint>
#include <vector>

#include "frozen/packed_layer.h"

namespace fused_lstm::library {

class Bidirectional {
 public:
  // The layers' packed bytes must outlive it.
  Bidirectional(const std::vector<frozen::Layer>& layers, int64_t batch_size);

  // x [T, B, D], y [T, B, 2P]. Allocates where T is larger than in any call before, or in
  // reserve().
  void run(const float* x, int64_t T, float* y);
  void reserve(int64_t T);
  void reset(const bool* mask);  // the final states of sequences with mask[b], or of all

  // The final states: h [2L, B, P] and c [2L, B, H].
  const std::vector<float>& h() const { return h_; }
  const std::vector<float>& c() const { return c_; }

 private:
  std::vector<frozen::Layer> layers_;
  int64_t B_, P_, H_;
  int64_t T_ = 0;  // for which there is memory
  std::vector<cpu::Slices> slices_;
  std::vector<float> h_, c_;
  std::vector<float> between_[2];  // [T, B, 2P]: of all layers but the last, in turn
  std::vector<char> scratch_;
};

}  // namespace fused_lstm::library
