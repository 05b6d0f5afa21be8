#include "frozen/packed_layer.h"

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "plan/plan.h"

namespace fused_lstm::frozen {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kMaxSize = int64_t{1} << 40;  // of a dimension's product
// Of a sum of int8 products: 65,536 times 255 * 128 is the most that int32 holds.
constexpr int64_t kMaxInt8Depth = 65536;

struct Header {
  char magic[8];
  int32_t version;
  Format format;
  Shape shape;
  cpu::FrozenLayout layout;
};
constexpr char kMagic[8] = {'f', 'u', 's', 'e', 'd', 'F', 'L', '\n'};
constexpr int32_t kVersion = 1;
constexpr int64_t kHeaderBytes = 128;
static_assert(sizeof(Header) <= kHeaderBytes && std::is_trivially_copyable_v<Header>);

// Calls body(Types, functions) for a format.
template <class Body>
auto with_format(Format format, const Body& body) {
  const cpu::FrozenKernels& table = cpu::frozen_kernels();
  switch (format) {
    case Format::float32:
      return body(cpu::FrozenFloat{}, table.of_float);
    case Format::bfloat16:
      return body(cpu::FrozenBFloat16{}, table.of_bfloat16);
    case Format::int8:
      break;
  }
  return body(cpu::FrozenInt8{}, table.of_int8);
}

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The weights without data, as the panels' functions want them.
struct Matrices {
  cpu::FrozenMatrix ih, hh, hr;
};
Matrices matrices_of(const Shape& s) {
  return {{nullptr, nullptr, false, 4 * s.hidden_size, s.input_size, cpu::PanelLayout::gates},
          {nullptr, nullptr, false, 4 * s.hidden_size, s.projection_size, cpu::PanelLayout::gates},
          {nullptr, nullptr, false, s.projection_size, s.hidden_size,
           cpu::PanelLayout::plain_transposed}};
}

// The panels of one layout, whichever processors have it: pack.inl and int8.inl draw them.
class Panels {
 public:
  Panels(const cpu::FrozenLayout& layout, Format format) : layout_(layout), format_(format) {}

  int64_t bytes(const cpu::FrozenMatrix& w) const {
    const int64_t columns = is_gates(w) ? w.rows / 4 : w.rows;
    const int64_t width = (is_gates(w) ? 1 : kVectors) * int64_t{layout_.lanes};
    return (columns + width - 1) / width * panel_bytes(w.columns);
  }

  void unpack(const char* panels, const cpu::FrozenMatrix& w, const MutableMatrix& to) const {
    const int64_t element = element_bytes(), step = layout_.depth_step;
    char* next = static_cast<char*>(to.data);
    for (int64_t row = 0; row < w.rows; ++row) {
      const Column at = column_of(w, row);
      const char* const panel = panels + at.panel * panel_bytes(w.columns);
      for (int64_t k = 0; k < w.columns; ++k, next += element) {
        const int64_t index = (k / step * kVectors * layout_.lanes + at.column) * step + k % step;
        std::memcpy(next, panel + index * element, element);
      }
      if (format_ == Format::int8) {
        std::memcpy(to.scales + row,
                    panel + padded(w.columns) * kVectors * layout_.lanes +
                        at.column * static_cast<int64_t>(sizeof(float)),
                    sizeof(float));
      }
    }
  }

 private:
  static constexpr int64_t kVectors = 4;

  // Which column of which panel a weight's row is, counted over the panel's four vectors.
  struct Column {
    int64_t panel, column;
  };
  Column column_of(const cpu::FrozenMatrix& w, int64_t row) const {
    const int64_t lanes = layout_.lanes, width = kVectors * lanes;
    if (!is_gates(w)) return {row / width, row % width};
    const int64_t gate = row / (w.rows / 4), unit = row % (w.rows / 4);
    return {unit / lanes, gate * lanes + unit % lanes};
  }

  static bool is_gates(const cpu::FrozenMatrix& w) { return w.layout == cpu::PanelLayout::gates; }
  int64_t element_bytes() const {
    return format_ == Format::float32 ? 4 : format_ == Format::bfloat16 ? 2 : 1;
  }
  int64_t padded(int64_t depth) const {
    const int64_t unit = layout_.depth_unit;
    return (depth + unit - 1) / unit * unit;
  }
  // With a scale and a sum for each column of quantised weights.
  int64_t panel_bytes(int64_t depth) const {
    const int64_t more = format_ == Format::int8 ? sizeof(float) + sizeof(int32_t) : 0;
    return kVectors * layout_.lanes * (padded(depth) * element_bytes() + more);
  }

  cpu::FrozenLayout layout_;
  Format format_;
};

// This processor's layout.
cpu::FrozenLayout layout_of(Format format) {
  return with_format(format, [](auto, const auto& functions) { return functions.layout; });
}

// Where a direction's weights lie in the packed bytes; `end` is where the next direction begins.
struct Places {
  int64_t ih, hh, hr, bias_ih, bias_hh, end;
};
Places places_of(const Panels& panels, const Shape& s, int64_t d) {
  const Matrices m = matrices_of(s);
  Places p = {};
  int64_t next = 0;
  const auto place = [&](int64_t bytes) {
    const int64_t at = next;
    next += aligned(bytes);
    return at;
  };
  const int64_t bias = s.biases ? 4 * s.hidden_size * static_cast<int64_t>(sizeof(float)) : 0;
  p.ih = place(panels.bytes(m.ih));
  p.hh = place(panels.bytes(m.hh));
  p.hr = place(s.projected ? panels.bytes(m.hr) : 0);
  p.bias_ih = place(bias);
  p.bias_hh = place(bias);
  p.end = next;
  const int64_t first = kHeaderBytes + d * next;
  for (int64_t* at : {&p.ih, &p.hh, &p.hr, &p.bias_ih, &p.bias_hh, &p.end}) *at += first;
  return p;
}

void check(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

void check_shape(const Shape& s, Format format) {
  const auto size = [](const char* name, int64_t value) {
    check(value >= 0 && value < int64_t{1} << 31,
          std::string(name) + " is " + std::to_string(value) + ", must be 0 to 2^31 - 1");
  };
  size("input_size", s.input_size);
  size("hidden_size", s.hidden_size);
  size("projection_size", s.projection_size);
  check(s.directions == 1 || s.directions == 2,
        "directions is " + std::to_string(s.directions) + ", must be 1 or 2");
  check(s.projected || s.projection_size == s.hidden_size,
        "projection_size is not hidden_size, but there is no projection");
  const int64_t widest = std::max(s.input_size, s.projection_size);
  check(widest == 0 || 4 * s.hidden_size < kMaxSize / widest,
        "a weight of [4 * " + std::to_string(s.hidden_size) + ", " + std::to_string(widest) +
            "] is too large, must have less than 2^40 elements");
  const int64_t depth = s.projected ? std::max(widest, s.hidden_size) : widest;
  check(format != Format::int8 || depth <= kMaxInt8Depth,
        "a row of int8 weights has " + std::to_string(depth) + " elements, must have at most " +
            std::to_string(kMaxInt8Depth));
}

void check_layout(const cpu::FrozenLayout& layout) {
  const auto within = [](int32_t value, int32_t most) { return value >= 1 && value <= most; };
  check(within(layout.lanes, 256) && within(layout.depth_step, 64) &&
            within(layout.depth_unit, 1024) && layout.depth_unit % layout.depth_step == 0,
        "the bytes are a frozen layer in panels that no processor has");
}

}  // namespace

const char* format_name(Format format) {
  switch (format) {
    case Format::float32:
      return "float32";
    case Format::bfloat16:
      return "bfloat16";
    case Format::int8:
      break;
  }
  return "int8";
}

int64_t packed_bytes(const Shape& shape, Format format) {
  check_shape(shape, format);
  return places_of({layout_of(format), format}, shape, shape.directions - 1).end;
}

void pack(const Shape& shape, Format format, const std::array<Weights, 2>& weights, void* packed) {
  check_shape(shape, format);
  with_format(format, [&](auto, const auto& functions) {
    char* const to = static_cast<char*>(packed);
    // Equal layers are equal bytes, so that what lies between members and weights is zero.
    std::memset(to, 0, packed_bytes(shape, format));
    const auto write = [&](size_t place, const auto& value) {
      std::memcpy(to + place, &value, sizeof(value));
    };
    write(offsetof(Header, magic), kMagic);
    write(offsetof(Header, version), kVersion);
    write(offsetof(Header, format), format);
    write(offsetof(Header, layout), functions.layout);
    constexpr size_t of_shape = offsetof(Header, shape);
    write(of_shape + offsetof(Shape, input_size), shape.input_size);
    write(of_shape + offsetof(Shape, hidden_size), shape.hidden_size);
    write(of_shape + offsetof(Shape, projection_size), shape.projection_size);
    write(of_shape + offsetof(Shape, directions), shape.directions);
    write(of_shape + offsetof(Shape, projected), shape.projected);
    write(of_shape + offsetof(Shape, biases), shape.biases);
    const auto pack_matrix = [&](cpu::FrozenMatrix matrix, const Matrix& from, int64_t place) {
      matrix.data = from.data;
      matrix.scales = from.scales;
      matrix.is_float = from.format == Format::float32;
      functions.pack(matrix, to + place);
    };
    const Matrices matrices = matrices_of(shape);
    const int64_t bias_bytes = 4 * shape.hidden_size * static_cast<int64_t>(sizeof(float));
    for (int64_t d = 0; d < shape.directions; ++d) {
      const Weights& w = weights[d];
      const Places places = places_of({functions.layout, format}, shape, d);
      pack_matrix(matrices.ih, w.ih, places.ih);
      pack_matrix(matrices.hh, w.hh, places.hh);
      if (shape.projected) pack_matrix(matrices.hr, w.hr, places.hr);
      if (shape.biases) {
        std::memcpy(to + places.bias_ih, w.bias_ih, bias_bytes);
        std::memcpy(to + places.bias_hh, w.bias_hh, bias_bytes);
      }
    }
  });
}

Layer::Layer(const void* packed, int64_t bytes) : packed_(static_cast<const char*>(packed)) {
  Header header;
  check(bytes >= kHeaderBytes, "a frozen layer of " + std::to_string(bytes) + " bytes, must be " +
                                   std::to_string(kHeaderBytes) + " or more");
  std::memcpy(&header, packed, sizeof(header));
  check(std::memcmp(header.magic, kMagic, sizeof(kMagic)) == 0 && header.version == kVersion,
        "the bytes are no frozen layer of this release");
  check(header.format >= Format::float32 && header.format <= Format::int8,
        "the format of a frozen layer is " + std::to_string(static_cast<int>(header.format)) +
            ", must be 0, 1 or 2");
  check_shape(header.shape, header.format);
  check_layout(header.layout);
  shape_ = header.shape;
  format_ = header.format;
  layout_ = header.layout;
  const cpu::FrozenLayout own = layout_of(format_);
  fits_ = std::memcmp(&layout_, &own, sizeof(own)) == 0;
  const int64_t all = places_of({layout_, format_}, shape_, shape_.directions - 1).end;
  check(bytes == all,
        "a frozen layer of " + std::to_string(bytes) + " bytes, must be " + std::to_string(all));
}

void Layer::unpack(const std::array<MutableWeights, 2>& weights) const {
  const Panels panels(layout_, format_);
  const Matrices m = matrices_of(shape_);
  const int64_t bias_bytes = 4 * shape_.hidden_size * static_cast<int64_t>(sizeof(float));
  for (int64_t d = 0; d < shape_.directions; ++d) {
    const MutableWeights& w = weights[d];
    const Places places = places_of(panels, shape_, d);
    panels.unpack(packed_ + places.ih, m.ih, w.ih);
    panels.unpack(packed_ + places.hh, m.hh, w.hh);
    if (shape_.projected) panels.unpack(packed_ + places.hr, m.hr, w.hr);
    if (shape_.biases) {
      std::memcpy(w.bias_ih, packed_ + places.bias_ih, bias_bytes);
      std::memcpy(w.bias_hh, packed_ + places.bias_hh, bias_bytes);
    }
  }
}

namespace {

// Rows of activations of one input GEMM, whose results stay in the L2 cache until their step.
constexpr int64_t kChunkRows = 96;

// How the scratch memory of a call is divided: the kernel's own, of each part; then, of each
// direction, the states. AMX tiles read hidden states in whole tiles: rows padded to 32 elements,
// and 15 rows past the last.
struct Scratch {
  int64_t chunk;         // steps of one input GEMM
  int64_t each;          // floats of a part
  int64_t stride;        // of a row of the hidden state
  int64_t hidden_bytes;  // of one of its two buffers
  int64_t cell_bytes, unprojected_bytes, projection_bytes;
  int64_t parts;

  int64_t direction_bytes() const {
    return 2 * hidden_bytes + cell_bytes + unprojected_bytes + projection_bytes;
  }
  int64_t bytes(int64_t directions) const {
    return aligned(parts * each * static_cast<int64_t>(sizeof(float))) +
           directions * direction_bytes();
  }
};

template <class Types>
Scratch divide_scratch(const cpu::FrozenFunctions<Types>& functions, const Shape& s, int64_t T,
                       int64_t B, const cpu::Slices& slices) {
  constexpr int64_t state = sizeof(typename Types::State), scalar = sizeof(float);
  const int64_t rows = cpu::widest(slices.batch);
  Scratch scratch = {};
  const int64_t chunks = std::max<int64_t>(1, T * rows / kChunkRows);
  scratch.chunk = (T + chunks - 1) / chunks;
  scratch.stride = (s.projection_size + cpu::kAmxDepth - 1) / cpu::kAmxDepth * cpu::kAmxDepth;
  scratch.hidden_bytes = aligned((B + cpu::kAmxRows - 1) * scratch.stride * state);
  scratch.cell_bytes = aligned(B * s.hidden_size * scalar);
  scratch.unprojected_bytes = s.projected ? aligned(B * s.hidden_size * state) : 0;
  scratch.projection_bytes = s.projected ? aligned(B * s.projection_size * scalar) : 0;
  cpu::CpuForwardParams<Types> f = {};
  f.chunk = scratch.chunk;
  f.input_size = s.input_size;
  f.layer.hidden_size = s.hidden_size;
  f.layer.projection_size = s.projection_size;
  f.layer.projected = s.projected;
  f.input_gemm = f.recurrent_gemm = Gemm::packed_ahead;
  scratch.each = functions.forward_scratch_size(f, rows, cpu::widest(slices.units));
  scratch.parts = slices.parts(s.directions);
  return scratch;
}

}  // namespace

int64_t Layer::scratch_bytes(int64_t T, int64_t B, const cpu::Slices& slices) const {
  return with_format(format_, [&](auto, const auto& functions) {
    return divide_scratch(functions, shape_, T, B, slices).bytes(shape_.directions);
  });
}

void Layer::forward(const Batch& batch, const cpu::Slices& slices, void* memory,
                    ParallelFor parallel_for) const {
  with_format(format_, [&](auto types, const auto& functions) {
    using Types = decltype(types);
    using Operand = typename Types::Operand;
    using State = typename Types::State;
    const Shape& s = shape_;
    const Scratch scratch = divide_scratch(functions, s, batch.T, batch.B, slices);
    const auto floats = [&](int64_t place) {
      return reinterpret_cast<const float*>(packed_ + place);
    };
    std::array<cpu::CpuForwardParams<Types>, 2> params = {};
    for (int64_t d = 0; d < s.directions; ++d) {
      const Places places = places_of({layout_, format_}, s, d);
      cpu::CpuForwardParams<Types>& f = params[d];
      ForwardParams<Types>& p = f.layer;
      p.steps = {batch.T, batch.B, batch.offsets, /*reverse=*/d == 1};
      p.boundaries = batch.boundaries;
      p.hidden_size = s.hidden_size;
      p.projection_size = s.projection_size;
      p.projected = s.projected;
      p.hidden_stride = scratch.stride;
      if (batch.h_0) p.h_0 = batch.h_0 + d * batch.B * s.projection_size;
      if (batch.c_0) p.c_0 = {batch.c_0 + d * batch.B * s.hidden_size, nullptr};
      p.output = batch.output + d * s.projection_size;
      p.output_stride = s.directions * s.projection_size;
      p.h_n = batch.h_n + d * batch.B * s.projection_size;
      p.c_n = {batch.c_n + d * batch.B * s.hidden_size, nullptr};
      f.input_gemm = f.recurrent_gemm = Gemm::packed_ahead;
      f.input_size = s.input_size;
      f.input = batch.input;
      const auto panels = [&](int64_t place) -> cpu::Weight<Types> {
        return {nullptr, reinterpret_cast<const Operand*>(packed_ + place)};
      };
      f.weight_ih = panels(places.ih);
      f.weight_hh = panels(places.hh);
      f.weight_hr = panels(places.hr);
      f.bias_ih = s.biases ? floats(places.bias_ih) : nullptr;
      f.bias_hh = s.biases ? floats(places.bias_hh) : nullptr;
      f.chunk = scratch.chunk;
      f.scratch = static_cast<float*>(memory);
      f.scratch_size = scratch.each;
      char* next = static_cast<char*>(memory) +
                   aligned(scratch.parts * scratch.each * static_cast<int64_t>(sizeof(float))) +
                   d * scratch.direction_bytes();
      const auto carve = [&](auto*& to, int64_t bytes) {
        to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(next);
        next += bytes;
      };
      for (State*& hidden : f.hidden) carve(hidden, scratch.hidden_bytes);
      carve(p.cell_state, scratch.cell_bytes);
      carve(p.unprojected, scratch.unprojected_bytes);
      carve(p.projection, scratch.projection_bytes);
    }
    if (slices.parallel) {
      cpu::run_parts(functions.forward, params.data(), s.directions, slices, parallel_for);
    } else {
      cpu::run_parts(functions.forward, params.data(), s.directions, slices, ParallelFor{});
    }
  });
}

cpu::Slices plan_slices(const Layer& layer, const Batch& batch, int threads, bool concurrent,
                        const Machine& machine) {
  const Shape& s = layer.shape();
  Problem problem = {};
  problem.length = batch.T;
  problem.batch = batch.B;
  problem.rows = batch.offsets ? batch.offsets[batch.T] : batch.T * batch.B;
  problem.input = s.input_size;
  problem.hidden = s.hidden_size;
  problem.projection = s.projection_size;
  problem.projected = s.projected;
  problem.directions = s.directions;
  problem.machine = machine;
  problem.threads = threads;
  problem.concurrent_threads = concurrent;
  problem.frozen = true;
  const int64_t lanes = with_format(layer.format(), [&](auto types, const auto& functions) {
    problem.operand_bytes = sizeof(typename decltype(types)::Operand);
    return functions.layout.lanes;
  });
  problem.element_bytes = problem.operand_bytes;
  const Plan plan = make_cpu_plan(problem);
  return {cpu::slice_batch(batch.T, batch.B, batch.offsets, plan.batch_slices),
          cpu::slice_units(s.hidden_size, plan.unit_slices, lanes), plan.parallel};
}

cpu::Slices one_part(const Shape& shape, int64_t B) {
  return {{0, B}, {0, shape.hidden_size}, false};
}

}  // namespace fused_lstm::frozen
