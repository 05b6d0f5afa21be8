// Loads a model from any bytes, and runs what could be loaded. libFuzzer calls it, or
// mutations.cpp where there is no clang; both mutate by `mutate` of this file.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "fused_lstm.h"

namespace {

// Runs what was loaded. Sizes are those of a file of a few kilobytes.
void run(const fl_model* model, int64_t batch_size) {
  fl_stream* stream = nullptr;
  if (fl_stream_create(model, batch_size, &stream) != FL_OK) std::abort();
  const int64_t T = 3, D = fl_model_input_size(model), P = fl_model_output_size(model);
  const std::vector<float> x(static_cast<size_t>(T * batch_size * D), 0.5f);
  std::vector<float> y(static_cast<size_t>(T * batch_size * P));
  if (fl_sequence(stream, x.data(), T, y.data()) != FL_OK) std::abort();
  const fl_status status = fl_step(stream, x.data(), y.data());
  if (status != (fl_model_directions(model) == 2 ? FL_BIDIRECTIONAL : FL_OK)) std::abort();
  fl_stream_free(stream);
}

// The bytes of the header, as the file says, or all that there are.
size_t header_size(const std::string& file) {
  uint64_t size = 0;
  if (file.size() < 8) return 0;
  std::memcpy(&size, file.data(), 8);
  return static_cast<size_t>(std::min<uint64_t>(size, file.size() - 8));
}

}  // namespace

// Changes `file`: bytes anywhere, tokens and numbers of the header, or what is between two places.
// Most of the time the size of the header is set right afterwards, and the data's to what it was.
void mutate(std::string& file, std::mt19937_64& random) {
  static const char* const tokens[] = {"0",
                                       "-1",
                                       "1e9",
                                       "18446744073709551616",
                                       "9223372036854775807",
                                       "4294967296",
                                       "\"",
                                       "{",
                                       "}",
                                       "[",
                                       "]",
                                       ",",
                                       ":",
                                       "\\u0000",
                                       "\\ud800",
                                       "\xff",
                                       "\xc0\x80",
                                       "null",
                                       "true",
                                       " ",
                                       "\n",
                                       "\"F32\"",
                                       "\"BF16\"",
                                       "\"I8\"",
                                       "\"F64\"",
                                       "\"U8\"",
                                       "\"F4\"",
                                       "\"shape\"",
                                       "\"dtype\"",
                                       "\"data_offsets\"",
                                       "\"__metadata__\":{},",
                                       "weight_ih_l0",
                                       "weight_hr_l0",
                                       "_reverse",
                                       "_scale",
                                       "bias_ih_l0",
                                       "l1",
                                       "l0",
                                       "[[[[[[[[",
                                       "{\"a\":{\"a\":{\"a\":",
                                       "00",
                                       ".5"};
  const auto below = [&](size_t bound) {
    return bound ? static_cast<size_t>(random() % bound) : 0;
  };
  const size_t header = header_size(file);
  const size_t start = std::min<size_t>(8, file.size());
  std::string text = file.substr(start, header), data = file.substr(start + header);
  switch (below(9)) {
    case 0:  // a byte of anything
      if (!file.empty()) file[below(file.size())] = static_cast<char>(random());
      return;
    case 1:  // truncated, or longer
      file.resize(below(file.size() + 9));
      return;
    case 2:
      if (!data.empty()) data[below(data.size())] = static_cast<char>(random());
      break;
    case 3: {  // a float of the data: NaN, infinite, huge
      static const uint32_t words[] = {0x7fc00000, 0x7f800000, 0xff7fffff, 0x7f7fffff, 1, 0};
      if (data.size() >= 4) std::memcpy(&data[below(data.size() / 4) * 4], &words[below(6)], 4);
      break;
    }
    case 4:
      text.insert(below(text.size() + 1), tokens[below(std::size(tokens))]);
      break;
    case 5: {  // another digit
      const size_t from = text.find_first_of("0123456789", below(text.size() + 1));
      if (from != std::string::npos) text[from] = static_cast<char>('0' + below(10));
      break;
    }
    case 6:
      if (!text.empty()) text.erase(below(text.size()), 1 + below(20));
      break;
    case 7: {  // a part of it twice
      const std::string part = text.substr(below(text.size() + 1), 1 + below(60));
      text.insert(below(text.size() + 1), part);
      break;
    }
    default: {  // a token for another
      const size_t from = below(text.size() + 1);
      const std::string token = tokens[below(std::size(tokens))];
      text.replace(from, std::min(token.size(), text.size() - from), token);
    }
  }
  uint64_t size = text.size();
  if (below(20) == 0) size = random() >> below(64);
  file.assign(reinterpret_cast<const char*>(&size), 8);
  file += text;
  file += data;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const fl_format formats[] = {FL_AS_STORED, FL_FLOAT32, FL_BFLOAT16, FL_INT8};
  fl_options options = FL_OPTIONS;
  options.format = formats[size % 4];
  if (size % 3 == 0) options.prefix = "lstm.";
  fl_model* model = nullptr;
  // A copy of its own: AddressSanitizer sees what is read past its end.
  const std::vector<uint8_t> copy(bytes, bytes + size);
  const fl_status status = fl_model_load_memory(copy.data(), copy.size(), &options, &model);
  if ((status == FL_OK) != (model != nullptr)) std::abort();
  if (status == FL_INTERNAL_ERROR || status == FL_OUT_OF_MEMORY) std::abort();
  if (status != FL_OK) {
    if (fl_last_error()[0] == 0) std::abort();
    return 0;
  }
  run(model, 1 + static_cast<int64_t>(size % 2));
  fl_model_free(model);
  return 0;
}

// libFuzzer's own: what comparisons look for, parts of other files
extern "C" __attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t* bytes, size_t size,
                                                         size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* bytes, size_t size, size_t max_size,
                                          unsigned seed) {
  if (seed % 3 == 0) return LLVMFuzzerMutate(bytes, size, max_size);
  std::mt19937_64 random(seed);
  std::string file(reinterpret_cast<char*>(bytes), size);
  for (uint64_t count = 1 + random() % 3; count > 0; --count) mutate(file, random);
  const size_t kept = std::min(file.size(), max_size);
  std::memcpy(bytes, file.data(), kept);
  return kept;
}
