// A frozen layer: the weights of its directions, packed once for this processor, and the forward
// pass. Free of torch.
//
//   packed bytes   header | of each direction: weight_ih, weight_hh, weight_hr, bias_ih, bias_hh
//
// They are plain data, without pointers, and may be copied. The header says which panels they are:
// any processor can unpack them, only those whose kernels have the same can run them.
#pragma once

#include <array>
#include <cstdint>

#include "cpu/parts.h"

namespace fused_lstm::frozen {

enum class Format : int32_t { float32, bfloat16, int8 };

const char* format_name(Format format);

struct Shape {
  int64_t input_size;       // D
  int64_t hidden_size;      // H
  int64_t projection_size;  // P; H without a projection
  int64_t directions;       // 1, 2
  bool projected, biases;
};

// A weight [rows, columns], as it is stored outside of panels: in the layer's format, or in
// float32, which packing rounds to it.
struct Matrix {
  const void* data;     // [rows, columns]
  const float* scales;  // [rows] of int8: an element times its row's scale is the weight; else null
  Format format;
};

// One direction's; those that the layer lacks are null.
struct Weights {
  Matrix ih;             // [4H, D], gates i f g o
  Matrix hh;             // [4H, P]
  Matrix hr;             // [P, H]
  const float* bias_ih;  // [4H]
  const float* bias_hh;  // [4H]
};

// Where `unpack` writes a weight, in the layer's format.
struct MutableMatrix {
  void* data;     // [rows, columns]
  float* scales;  // [rows] of int8, else null
};
struct MutableWeights {
  MutableMatrix ih, hh, hr;
  float* bias_ih;
  float* bias_hh;
};

// One call. N rows, by t, then b: T * B, or what a packed sequence has of them.
struct Batch {
  int64_t T, B;
  const int64_t* offsets;  // [T + 1]: first row of each step of a packed sequence, or null
  Boundaries boundaries;
  const float* input;  // [N, D]
  const float* h_0;    // [directions, B, P], or null: zero
  const float* c_0;    // [directions, B, H], or null: zero
  float* output;       // [N, directions * P]
  float* h_n;          // [directions, B, P]; may be h_0's memory
  float* c_n;          // [directions, B, H]; may be c_0's
};

// A loop over 0 .. n in ranges, on the caller's threads.
struct ParallelFor {
  void (*run)(int64_t n, const void* body, void (*call)(const void* body, int64_t, int64_t));

  template <class Body>
  void operator()(int64_t n, const Body& body) const {
    if (!run) return body(0, n);
    run(n, &body, [](const void* all, int64_t begin, int64_t end) {
      (*static_cast<const Body*>(all))(begin, end);
    });
  }
};

// A view of packed bytes, which must outlive it.
class Layer {
 public:
  // Throws std::invalid_argument, saying why, for bytes that are no frozen layer, or not all of
  // one.
  Layer(const void* packed, int64_t bytes);

  const Shape& shape() const { return shape_; }
  Format format() const { return format_; }
  // The weights as they were packed, to the bit.
  void unpack(const std::array<MutableWeights, 2>& weights) const;

  // Whether this processor's kernels have these panels; the functions below are for such a layer.
  bool fits() const { return fits_; }
  // Bytes of the scratch memory of `forward`, 64-byte aligned, for at most T steps of B sequences.
  int64_t scratch_bytes(int64_t T, int64_t B, const cpu::Slices& slices) const;
  void forward(const Batch& batch, const cpu::Slices& slices, void* scratch,
               ParallelFor parallel_for = {}) const;

 private:
  const char* packed_;
  Shape shape_;
  Format format_;
  cpu::FrozenLayout layout_;
  bool fits_;
};

// Bytes of a packed layer. Throws std::length_error where 2^47 would not do.
int64_t packed_bytes(const Shape& shape, Format format);
// Packs weights [directions] into packed_bytes, 64-byte aligned.
void pack(const Shape& shape, Format format, const std::array<Weights, 2>& weights, void* packed);

// All in one part, on the calling thread.
cpu::Slices one_part(const Shape& shape, int64_t B);
// As the plan divides a call of N rows among `threads` threads, which may meet at a barrier if they
// are `concurrent`.
cpu::Slices plan_slices(const Layer& layer, const Batch& batch, int threads, bool concurrent,
                        const Machine& machine);

}  // namespace fused_lstm::frozen
