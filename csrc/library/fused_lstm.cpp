// The C interface: arguments checked, exceptions turned into a status and a line of text.
#include "library/fused_lstm.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>

#include "cpu/instruction_set.h"
#include "frozen/stream.h"
#include "library/bidirectional.h"
#include "library/error.h"
#include "library/model.h"
#include "library/safetensors.h"

using fused_lstm::frozen::Stream;
using fused_lstm::library::Bidirectional;
using fused_lstm::library::Error;
using fused_lstm::library::FloatTensor;
using fused_lstm::library::Model;
using fused_lstm::library::quoted;

struct fl_model {
  std::shared_ptr<const Model> shared;
};

struct fl_stream {
  std::shared_ptr<const Model> model;
  int64_t batch_size;
  std::optional<Stream> stream;  // of one direction
  std::optional<Bidirectional> both;
};

namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{4} << 30;
constexpr int64_t kMaxElements = int64_t{1} << 40;  // of what a call takes or keeps
// fl_sequence takes a stream in blocks of about so many rows, whose memory is bounded.
constexpr int64_t kBlockRows = 96;
constexpr int64_t kMinBlockSteps = 4;

// Not a std::string: an error of fl_step allocates nothing either.
thread_local char last_error[512] = "";

fl_status failed(fl_status status, const char* message) {
  const size_t length = std::min(std::strlen(message), sizeof(last_error) - 1);
  std::memcpy(last_error, message, length);
  last_error[length] = 0;
  return status;
}

// Runs `body`, which returns nothing.
template <class Body>
fl_status guarded(const Body& body) noexcept {
  try {
    body();
    return FL_OK;
  } catch (const Error& error) {
    return failed(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return failed(FL_OUT_OF_MEMORY, fl_error_text(FL_OUT_OF_MEMORY));
  } catch (const std::length_error&) {
    return failed(FL_OUT_OF_MEMORY, fl_error_text(FL_OUT_OF_MEMORY));
  } catch (const std::invalid_argument& error) {  // of csrc/frozen
    return failed(FL_BAD_MODEL, error.what());
  } catch (const std::exception& error) {
    return failed(FL_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(FL_INTERNAL_ERROR, fl_error_text(FL_INTERNAL_ERROR));
  }
}

[[noreturn]] void refuse(const std::string& message) { throw Error(FL_INVALID_ARGUMENT, message); }

void require(const void* pointer, const char* name) {
  if (!pointer) refuse(std::string(name) + " is NULL");
}

fl_options checked(const fl_options* given) {
  fl_options options = FL_OPTIONS;
  if (given) {
    if (given->size < sizeof(size_t) || given->size > sizeof(fl_options)) {
      refuse("options.size is " + std::to_string(given->size) +
             ", must be sizeof(fl_options), as in FL_OPTIONS");
    }
    std::memcpy(&options, given, given->size);
  }
  if (options.format < FL_AS_STORED || options.format > FL_INT8) {
    refuse("options.format is " + std::to_string(options.format) + ", must be an fl_format");
  }
  if (options.max_bytes == 0) options.max_bytes = kMaxFileBytes;
  return options;
}

void choose_kernels() {
  try {
    fused_lstm::cpu::instruction_set();
  } catch (const std::runtime_error& error) {
    throw Error(FL_UNSUPPORTED_CPU, error.what());
  }
  fused_lstm::cpu::settle_division();
}

fl_model* load(std::string_view file, const fl_options& options) {
  if (file.size() > options.max_bytes) {
    refuse("size is " + std::to_string(file.size()) +
           ", must be at most options.max_bytes = " + std::to_string(options.max_bytes));
  }
  choose_kernels();
  return new fl_model{fused_lstm::library::make_model(file, options)};
}

// Whether a dense array [a, b, c] would have more elements than a machine's memory.
bool too_large(int64_t a, int64_t b, int64_t c) {
  return a > kMaxElements / b || a * b > kMaxElements / c;
}

int64_t widest(const Model& m) {
  const int64_t output = m.directions * m.projection_size;
  return std::max({m.input_size, m.hidden_size, output});
}

void check_steps(const fl_stream& stream, int64_t T) {
  if (T < 0) refuse("T is " + std::to_string(T) + ", must be 0 or more");
  if (T > 0 && too_large(T, stream.batch_size, widest(*stream.model))) {
    refuse("T is " + std::to_string(T) + ": so many steps have more than 2^40 elements");
  }
}

int64_t block_steps(const fl_stream& stream) {
  return std::max(kMinBlockSteps, kBlockRows / stream.batch_size);
}

// Calls body(state of the stream's layer, offset in h [L, B, P] or c [L, B, H], size) for each.
template <class Body>
void for_states(const fl_stream& s, int64_t width, const Body& body) {
  const int64_t size = s.batch_size * width;
  for (size_t k = 0; k < s.model->layers.size(); ++k) {
    body(static_cast<int64_t>(k), static_cast<int64_t>(k) * size, size);
  }
}

}  // namespace

extern "C" {

const char* fl_version(void) { return FUSED_LSTM_VERSION; }

const char* fl_instruction_set(void) {
  const char* name = nullptr;
  guarded([&] {
    choose_kernels();
    name = fused_lstm::cpu::instruction_set().name;
  });
  return name;
}

const char* fl_error_text(int status) {
  switch (status) {
    case FL_OK:
      return "no error";
    case FL_INVALID_ARGUMENT:
      return "an argument is invalid";
    case FL_OUT_OF_MEMORY:
      return "out of memory";
    case FL_IO_ERROR:
      return "the file cannot be read";
    case FL_BAD_FILE:
      return "the file is no safetensors file, or damaged";
    case FL_BAD_MODEL:
      return "the file's tensors are not those of an LSTM";
    case FL_NOT_FINITE:
      return "a weight is NaN or infinite";
    case FL_NOT_FOUND:
      return "the file has no such tensor";
    case FL_BIDIRECTIONAL:
      return "a model of two directions takes whole sequences, by fl_sequence";
    case FL_UNSUPPORTED_CPU:
      return "FUSED_LSTM_CPU_ISA names instructions that this processor lacks";
    default:
      return "an internal error";
  }
}

const char* fl_last_error(void) { return last_error; }

fl_status fl_model_load(const char* path, const fl_options* options, fl_model** model) {
  return guarded([&] {
    require(path, "path");
    require(model, "model");
    const fl_options all = checked(options);
    const std::string file = fused_lstm::library::read_file(path, all.max_bytes);
    try {
      *model = load(file, all);
    } catch (const Error& error) {
      throw Error(error.status(), std::string(path) + ": " + error.what());
    }
  });
}

fl_status fl_model_load_memory(const void* bytes, size_t size, const fl_options* options,
                               fl_model** model) {
  return guarded([&] {
    require(bytes, "bytes");
    require(model, "model");
    *model = load({static_cast<const char*>(bytes), size}, checked(options));
  });
}

void fl_model_free(fl_model* model) { delete model; }

int64_t fl_model_layers(const fl_model* model) {
  return static_cast<int64_t>(model->shared->layers.size());
}
int64_t fl_model_directions(const fl_model* model) { return model->shared->directions; }
int64_t fl_model_input_size(const fl_model* model) { return model->shared->input_size; }
int64_t fl_model_hidden_size(const fl_model* model) { return model->shared->hidden_size; }
int64_t fl_model_projection_size(const fl_model* model) { return model->shared->projection_size; }
int64_t fl_model_output_size(const fl_model* model) {
  return model->shared->directions * model->shared->projection_size;
}
fl_format fl_model_format(const fl_model* model) {
  switch (model->shared->format) {
    case fused_lstm::frozen::Format::float32:
      return FL_FLOAT32;
    case fused_lstm::frozen::Format::bfloat16:
      return FL_BFLOAT16;
    case fused_lstm::frozen::Format::int8:
      break;
  }
  return FL_INT8;
}
size_t fl_model_bytes(const fl_model* model) {
  size_t bytes = 0;
  for (const auto& packed : model->shared->packed) bytes += static_cast<size_t>(packed.size);
  return bytes;
}

fl_status fl_model_tensor(const fl_model* model, const char* name, fl_tensor* tensor) {
  return guarded([&] {
    require(model, "model");
    require(name, "name");
    require(tensor, "tensor");
    const std::vector<FloatTensor>& all = model->shared->tensors;
    const auto found =
        std::lower_bound(all.begin(), all.end(), name,
                         [](const FloatTensor& t, const char* sought) { return t.name < sought; });
    if (found == all.end() || found->name != name) {
      throw Error(FL_NOT_FOUND, "the file has no " + quoted(name) +
                                    " of floats, other than the LSTM's own tensors");
    }
    if (!found->finite) throw Error(FL_NOT_FINITE, quoted(name) + " has a NaN or an infinity");
    *tensor = {found->data.data(), static_cast<int32_t>(found->shape.size()), {}};
    std::copy(found->shape.begin(), found->shape.end(), tensor->shape);
  });
}

fl_status fl_stream_create(const fl_model* model, int64_t batch_size, fl_stream** stream) {
  return guarded([&] {
    require(model, "model");
    require(stream, "stream");
    const Model& m = *model->shared;
    if (batch_size < 1) {
      refuse("batch_size is " + std::to_string(batch_size) + ", must be 1 or more");
    }
    if (too_large(batch_size, 4 * static_cast<int64_t>(m.layers.size()), widest(m))) {
      refuse("batch_size is " + std::to_string(batch_size) +
             ": a stream of so many sequences has more than 2^40 elements");
    }
    std::unique_ptr<fl_stream> made(new fl_stream{model->shared, batch_size, {}, {}});
    if (m.directions == 1) {
      made->stream.emplace(m.layers, batch_size);
    } else {
      made->both.emplace(m.layers, batch_size);
    }
    *stream = made.release();
  });
}

fl_status fl_stream_fork(const fl_stream* stream, fl_stream** fork) {
  return guarded([&] {
    require(stream, "stream");
    require(fork, "fork");
    *fork = new fl_stream(*stream);
  });
}

void fl_stream_free(fl_stream* stream) { delete stream; }

int64_t fl_stream_batch_size(const fl_stream* stream) { return stream->batch_size; }

fl_status fl_step(fl_stream* stream, const float* x, float* y) {
  if (!stream) return failed(FL_INVALID_ARGUMENT, "stream is NULL");
  if (!x) return failed(FL_INVALID_ARGUMENT, "x is NULL");
  if (!y) return failed(FL_INVALID_ARGUMENT, "y is NULL");
  if (!stream->stream) return failed(FL_BIDIRECTIONAL, fl_error_text(FL_BIDIRECTIONAL));
  return guarded([&] {
    const float* const h = stream->stream->step(x);
    std::memcpy(y, h, stream->batch_size * stream->model->projection_size * sizeof(float));
  });
}

fl_status fl_sequence(fl_stream* stream, const float* x, int64_t T, float* y) {
  return guarded([&] {
    require(stream, "stream");
    check_steps(*stream, T);
    if (T == 0) return;
    require(x, "x");
    require(y, "y");
    if (stream->both) return stream->both->run(x, T, y);
    const int64_t input = stream->batch_size * stream->model->input_size;
    const int64_t output = stream->batch_size * stream->model->projection_size;
    const int64_t block = block_steps(*stream);
    for (int64_t t = 0; t < T; t += block) {
      const int64_t steps = std::min(block, T - t);
      const float* const h = stream->stream->advance(x + t * input, steps);
      std::memcpy(y + t * output, h, steps * output * sizeof(float));
    }
  });
}

fl_status fl_stream_reserve(fl_stream* stream, int64_t T) {
  return guarded([&] {
    require(stream, "stream");
    check_steps(*stream, T);
    if (stream->both) return stream->both->reserve(T);
    stream->stream->reserve(std::min(T, block_steps(*stream)));
  });
}

fl_status fl_stream_reset(fl_stream* stream, const bool* mask) {
  return guarded([&] {
    require(stream, "stream");
    if (stream->both) return stream->both->reset(mask);
    stream->stream->reset(mask);
  });
}

fl_status fl_state_get(const fl_stream* stream, float* h, float* c) {
  return guarded([&] {
    require(stream, "stream");
    if (const auto& both = stream->both) {
      if (h) std::copy(both->h().begin(), both->h().end(), h);
      if (c) std::copy(both->c().begin(), both->c().end(), c);
      return;
    }
    for_states(*stream, stream->model->projection_size, [&](int64_t k, int64_t at, int64_t size) {
      if (h) std::copy_n(stream->stream->h(k), size, h + at);
    });
    for_states(*stream, stream->model->hidden_size, [&](int64_t k, int64_t at, int64_t size) {
      if (c) std::copy_n(stream->stream->c(k), size, c + at);
    });
  });
}

fl_status fl_state_set(fl_stream* stream, const float* h, const float* c) {
  return guarded([&] {
    require(stream, "stream");
    if (stream->both) throw Error(FL_BIDIRECTIONAL, fl_error_text(FL_BIDIRECTIONAL));
    for_states(*stream, stream->model->projection_size, [&](int64_t k, int64_t at, int64_t size) {
      if (h) std::copy_n(h + at, size, stream->stream->h(k));
    });
    for_states(*stream, stream->model->hidden_size, [&](int64_t k, int64_t at, int64_t size) {
      if (c) std::copy_n(c + at, size, stream->stream->c(k));
    });
  });
}

}  // extern "C"
