// A stream: the state of a stack of frozen layers, which it advances by a step or by more. Once it
// is made, a step allocates nothing and takes no lock. Free of torch.
#pragma once

#include <cstdint>
#include <vector>

#include "frozen/packed_layer.h"

namespace fused_lstm::frozen {

class Stream {
 public:
  // Of B sequences, with a state of zeros. The layers' packed bytes must outlive it. Throws
  // std::invalid_argument for layers that do not fit one another or have two directions.
  Stream(std::vector<Layer> layers, int64_t batch_size);
  Stream(const Stream& other);  // a stream of its own that goes on from the same state
  Stream& operator=(const Stream&) = delete;

  int64_t batch_size() const { return B_; }
  int64_t input_size() const { return layers_.front().shape().input_size; }
  int64_t output_size() const { return layers_.back().shape().projection_size; }
  const std::vector<Layer>& layers() const { return layers_; }

  // Advances by a step. input: [B, D]. Returns the output [B, P] of the last layer, which stays as
  // it is until the next call.
  const float* step(const float* input) { return advance(input, 1); }
  // Likewise by T steps. input: [T, B, D]. Returns [T, B, P]. Allocates where T is larger than in
  // any call before, or in reserve().
  const float* advance(const float* input, int64_t T);
  // Likewise, with the output [T, B, P] in the caller's memory.
  void advance(const float* input, int64_t T, float* output);
  void reserve(int64_t T);

  // The state of layer k: h [B, P of the layer] and c [B, H of the layer].
  float* h(int64_t k) { return h_[k]; }
  float* c(int64_t k) { return c_[k]; }
  const float* h(int64_t k) const { return h_[k]; }
  const float* c(int64_t k) const { return c_[k]; }
  // Sets the state of the sequences with mask[b] to zero; of all if it is null.
  void reset(const bool* mask);

 private:
  std::vector<Layer> layers_;
  int64_t B_;
  int64_t T_ = 0;  // for which there is memory
  std::vector<float*> h_, c_;
  std::vector<cpu::Slices> slices_;
  std::vector<float> state_;
  std::vector<float> outputs_[2];  // [T, B, widest P]: of the layers in turn
  std::vector<char> scratch_;
};

}  // namespace fused_lstm::frozen
