#include "library/bidirectional.h"

#include <algorithm>

namespace fused_lstm::library {
namespace {

constexpr int64_t kAlignment = 64;

}  // namespace

Bidirectional::Bidirectional(const std::vector<frozen::Layer>& layers, int64_t batch_size)
    : layers_(layers),
      B_(batch_size),
      P_(layers.front().shape().projection_size),
      H_(layers.front().shape().hidden_size) {
  for (const frozen::Layer& layer : layers_) {
    slices_.push_back(frozen::one_part(layer.shape(), B_));
  }
  const int64_t states = 2 * static_cast<int64_t>(layers_.size()) * B_;
  h_.resize(states * P_);
  c_.resize(states * H_);
}

void Bidirectional::reserve(int64_t T) {
  if (T <= T_) return;
  int64_t bytes = 0;
  for (size_t k = 0; k < layers_.size(); ++k) {
    bytes = std::max(bytes, layers_[k].scratch_bytes(T, B_, slices_[k]));
  }
  scratch_.resize(bytes + kAlignment);
  for (size_t i = 0; i < 2 && i + 1 < layers_.size(); ++i) between_[i].resize(T * B_ * 2 * P_);
  T_ = T;
}

void Bidirectional::run(const float* x, int64_t T, float* y) {
  reserve(T);
  reset(nullptr);
  const auto address = reinterpret_cast<uintptr_t>(scratch_.data());
  char* const scratch = scratch_.data() + (kAlignment - address % kAlignment) % kAlignment;
  for (size_t k = 0; k < layers_.size(); ++k) {
    float* const h = h_.data() + 2 * static_cast<int64_t>(k) * B_ * P_;
    float* const c = c_.data() + 2 * static_cast<int64_t>(k) * B_ * H_;
    float* const output = k + 1 < layers_.size() ? between_[k % 2].data() : y;
    layers_[k].forward({T, B_, nullptr, {}, x, h, c, output, h, c}, slices_[k], scratch);
    x = output;
  }
}

void Bidirectional::reset(const bool* mask) {
  for (int64_t row = 0; row < 2 * static_cast<int64_t>(layers_.size()) * B_; ++row) {
    if (mask && !mask[row % B_]) continue;
    std::fill_n(h_.data() + row * P_, P_, 0.0f);
    std::fill_n(c_.data() + row * H_, H_, 0.0f);
  }
}

}  // namespace fused_lstm::library
