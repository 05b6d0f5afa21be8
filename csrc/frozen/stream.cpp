#include "frozen/stream.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace fused_lstm::frozen {

Stream::Stream(std::vector<Layer> layers, int64_t batch_size)
    : layers_(std::move(layers)), B_(batch_size) {
  const auto fail = [](const std::string& message) { throw std::invalid_argument(message); };
  if (layers_.empty()) fail("a stream of no layer, must have one or more");
  if (B_ < 1) fail("batch_size is " + std::to_string(B_) + ", must be 1 or more");
  int64_t floats = 0;
  for (size_t k = 0; k < layers_.size(); ++k) {
    const Shape& s = layers_[k].shape();
    const std::string name = "layer " + std::to_string(k);
    if (s.directions != 1) {
      fail(name + " has two directions, must have one: the reverse one needs the whole sequence");
    }
    if (k > 0 && s.input_size != layers_[k - 1].shape().projection_size) {
      fail(name + " takes " + std::to_string(s.input_size) +
           " features, but the layer before has " +
           std::to_string(layers_[k - 1].shape().projection_size));
    }
    slices_.push_back(one_part(s, B_));
    floats += B_ * (s.projection_size + s.hidden_size);
  }
  state_.resize(floats);
  float* next = state_.data();
  for (const Layer& layer : layers_) {
    h_.push_back(next);
    next += B_ * layer.shape().projection_size;
    c_.push_back(next);
    next += B_ * layer.shape().hidden_size;
  }
  reserve(1);
}

Stream::Stream(const Stream& other) : Stream(other.layers_, other.B_) {
  reserve(other.T_);
  state_ = other.state_;
  for (size_t k = 0; k < layers_.size(); ++k) {
    h_[k] = state_.data() + (other.h_[k] - other.state_.data());
    c_[k] = state_.data() + (other.c_[k] - other.state_.data());
  }
}

void Stream::reserve(int64_t T) {
  if (T <= T_) return;
  int64_t widest = 0, bytes = 0;
  for (size_t k = 0; k < layers_.size(); ++k) {
    widest = std::max(widest, layers_[k].shape().projection_size);
    bytes = std::max(bytes, layers_[k].scratch_bytes(T, B_, slices_[k]));
  }
  outputs_[0].resize(T * B_ * widest);
  if (layers_.size() > 1) outputs_[1].resize(T * B_ * widest);
  scratch_.resize(bytes + 64);
  T_ = T;
}

const float* Stream::advance(const float* input, int64_t T) {
  reserve(T);
  advance(input, T, outputs_[0].data());
  return outputs_[0].data();
}

void Stream::advance(const float* input, int64_t T, float* output) {
  reserve(T);
  const auto address = reinterpret_cast<uintptr_t>(scratch_.data());
  char* const scratch = scratch_.data() + (64 - address % 64) % 64;
  for (size_t k = 0; k < layers_.size(); ++k) {
    const size_t above = layers_.size() - 1 - k;
    float* const to = above == 0 ? output : outputs_[above % 2].data();
    layers_[k].forward({T, B_, nullptr, {}, input, h_[k], c_[k], to, h_[k], c_[k]}, slices_[k],
                       scratch);
    input = to;
  }
}

void Stream::reset(const bool* mask) {
  for (size_t k = 0; k < layers_.size(); ++k) {
    const Shape& s = layers_[k].shape();
    for (int64_t b = 0; b < B_; ++b) {
      if (mask && !mask[b]) continue;
      std::fill_n(h_[k] + b * s.projection_size, s.projection_size, 0.0f);
      std::fill_n(c_[k] + b * s.hidden_size, s.hidden_size, 0.0f);
    }
  }
}

}  // namespace fused_lstm::frozen
