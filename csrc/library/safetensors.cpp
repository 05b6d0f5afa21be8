#include "library/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "library/error.h"

namespace fused_lstm::library {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr int64_t kMaxBytes = int64_t{1} << 56;    // of a tensor and of an offset

[[noreturn]] void fail(const std::string& message) { throw Error(FL_BAD_FILE, message); }

struct DtypeFacts {
  std::string_view name;
  Dtype dtype;
  int64_t bits;
};
constexpr DtypeFacts kDtypes[] = {
    {"F32", Dtype::f32, 32},      {"BF16", Dtype::bf16, 16},    {"I8", Dtype::i8, 8},
    {"F16", Dtype::f16, 16},      {"F64", Dtype::f64, 64},      {"BOOL", Dtype::other, 8},
    {"U8", Dtype::other, 8},      {"I16", Dtype::other, 16},    {"U16", Dtype::other, 16},
    {"I32", Dtype::other, 32},    {"U32", Dtype::other, 32},    {"I64", Dtype::other, 64},
    {"U64", Dtype::other, 64},    {"C64", Dtype::other, 64},    {"F8_E4M3", Dtype::other, 8},
    {"F8_E5M2", Dtype::other, 8}, {"F8_E8M0", Dtype::other, 8}, {"F4", Dtype::other, 4},
    {"F6_E2M3", Dtype::other, 6}, {"F6_E3M2", Dtype::other, 6},
};

// Bytes of the UTF-8 character at the start of `text`; 0 if there is none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) -> uint32_t {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  const uint32_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return 0;
  // The second byte of the first and the last characters of each length: no overlong forms, no
  // surrogates, nothing above U+10FFFF
  const uint32_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const uint32_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xbf) return 0;
  }
  return length;
}

void append_utf8(std::string& to, uint32_t point) {
  const auto add = [&](uint32_t byte) { to += static_cast<char>(byte); };
  const auto rest = [&](int shift) { add(0x80 | (point >> shift & 0x3f)); };
  if (point < 0x80) {
    add(point);
  } else if (point < 0x800) {
    add(0xc0 | point >> 6);
    rest(0);
  } else if (point < 0x10000) {
    add(0xe0 | point >> 12);
    rest(6);
    rest(0);
  } else {
    add(0xf0 | point >> 18);
    rest(12);
    rest(6);
    rest(0);
  }
}

// The JSON that a header may hold: objects, strings, arrays of integers from 0 on. The caller knows
// what comes next, so that nothing nests deeper than the format does.
class Json {
 public:
  explicit Json(std::string_view text) : text_(text) {}

  [[noreturn]] void fail_here(const std::string& what) const {
    fail("byte " + std::to_string(8 + at_) + " of the header: " + what);
  }
  bool accept(char c) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail_here(std::string("must be '") + c + "'");
  }
  void expect_end() {
    skip_space();
    if (at_ != text_.size()) fail_here("more than one JSON value");
  }
  std::string string() {
    expect('"');
    std::string value;
    while (true) {
      if (at_ == text_.size()) fail_here("a string does not end");
      const char c = text_[at_];
      if (c == '"') break;
      if (c == '\\') {
        ++at_;
        append_escaped(value);
        continue;
      }
      const size_t length = utf8_length(text_.substr(at_));
      if (length == 0 || static_cast<unsigned char>(c) < 0x20) {
        fail_here("neither UTF-8 nor escaped");
      }
      value.append(text_, at_, length);
      at_ += length;
    }
    ++at_;
    return value;
  }
  int64_t integer() {
    skip_space();
    const size_t first = at_;
    int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      value = 10 * value + (text_[at_] - '0');
      if (value > kMaxBytes) fail_here("a number is above 2^56");
      if (at_ > first && text_[first] == '0') fail_here("a number begins with 0");
    }
    if (at_ == first) fail_here("must be an integer, 0 or more");
    return value;
  }
  // Calls body() before each of an array's elements.
  template <class Body>
  void array(const Body& body) {
    expect('[');
    if (accept(']')) return;
    do body();
    while (accept(','));
    expect(']');
  }
  // Calls body(key) before each of an object's values.
  template <class Body>
  void object(const Body& body) {
    expect('{');
    if (accept('}')) return;
    do {
      std::string key = string();
      expect(':');
      body(std::move(key));
    } while (accept(','));
    expect('}');
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && std::strchr(" \t\n\r", text_[at_]) && text_[at_]) ++at_;
  }
  uint32_t hexadecimal() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ < text_.size() ? text_[at_] : 0;
      const bool digit = c >= '0' && c <= '9', lower = c >= 'a' && c <= 'f';
      if (!digit && !lower && !(c >= 'A' && c <= 'F')) fail_here("\\u needs four digits");
      value = 16 * value + static_cast<uint32_t>(digit ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }
  // What stands after a backslash.
  void append_escaped(std::string& value) {
    constexpr std::string_view names = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    const char c = at_ < text_.size() ? text_[at_] : 0;
    const size_t known = names.find(c);
    if (known == std::string_view::npos && c != 'u') fail_here("unknown after a backslash");
    ++at_;
    if (c != 'u') {
      value += meanings[known];
      return;
    }
    uint32_t point = hexadecimal();
    if (point >= 0xd800 && point < 0xdc00) {
      if (text_.substr(at_, 2) != "\\u") fail_here("half of a surrogate pair");
      at_ += 2;
      const uint32_t low = hexadecimal();
      if (low < 0xdc00 || low > 0xdfff) fail_here("half of a surrogate pair");
      point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    } else if (point >= 0xdc00 && point < 0xe000) {
      fail_here("half of a surrogate pair");
    }
    append_utf8(value, point);
  }

  std::string_view text_;
  size_t at_ = 0;
};

struct Entry {
  Tensor tensor;
  int64_t begin, end;
};

Entry parse_entry(Json& json, std::string name) {
  Entry entry = {{std::move(name), Dtype::other, "", {}, nullptr, 0}, 0, 0};
  Tensor& t = entry.tensor;
  const std::string of = quoted(t.name) + ": ";
  bool has_dtype = false, has_shape = false;
  int offsets = -1;
  json.object([&](const std::string& key) {
    if (key == "dtype" && !has_dtype) {
      has_dtype = true;
      t.dtype_name = json.string();
    } else if (key == "shape" && !has_shape) {
      has_shape = true;
      json.array([&] {
        if (t.shape.size() == kMaxDimensions) json.fail_here(of + "more than 8 dimensions");
        t.shape.push_back(json.integer());
      });
    } else if (key == "data_offsets" && offsets < 0) {
      offsets = 0;
      json.array([&] {
        if (offsets == 2) json.fail_here(of + "more than two data_offsets");
        (offsets++ ? entry.end : entry.begin) = json.integer();
      });
    } else {
      json.fail_here(of + "the key " + quoted(key) + " is unknown, or comes twice");
    }
  });
  if (!has_dtype || !has_shape || offsets != 2) {
    json.fail_here(of + "must have dtype, shape and two data_offsets");
  }
  const auto facts = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                  [&](const DtypeFacts& d) { return d.name == t.dtype_name; });
  if (facts == std::end(kDtypes)) fail(of + "dtype is " + quoted(t.dtype_name) + ", unknown");
  t.dtype = facts->dtype;
  t.elements = 1;
  for (const int64_t size : t.shape) {
    if (size > 0 && t.elements > kMaxBytes / size) fail(of + "more than 2^56 elements");
    t.elements *= size;
  }
  if (t.elements > kMaxBytes / facts->bits) fail(of + "more than 2^56 bits");
  const int64_t bits = t.elements * facts->bits;
  if (bits % 8 != 0) fail(of + "ends within a byte");
  if (entry.end < entry.begin || entry.end - entry.begin != bits / 8) {
    fail(of + "data_offsets are " + std::to_string(entry.begin) + " and " +
         std::to_string(entry.end) + ", must be " + std::to_string(bits / 8) +
         " bytes apart for its shape and dtype");
  }
  return entry;
}

std::vector<Entry> parse_header(std::string_view text) {
  if (text.empty() || text[0] != '{') fail("byte 8 of the header: must be '{'");
  std::vector<Entry> entries;
  bool has_metadata = false;
  Json json(text);
  json.object([&](std::string key) {
    if (key != "__metadata__") {
      entries.push_back(parse_entry(json, std::move(key)));
      return;
    }
    if (has_metadata) json.fail_here("__metadata__ comes twice");
    has_metadata = true;
    std::vector<std::string> keys;
    json.object([&](std::string metadata_key) {
      keys.push_back(std::move(metadata_key));
      json.string();
    });
    std::sort(keys.begin(), keys.end());
    if (std::adjacent_find(keys.begin(), keys.end()) != keys.end()) {
      json.fail_here("a key of __metadata__ comes twice");
    }
  });
  json.expect_end();
  return entries;
}

}  // namespace

std::vector<Tensor> parse_safetensors(std::string_view bytes) {
  if (bytes.size() < 8) fail("a file of " + std::to_string(bytes.size()) + " bytes, too short");
  uint64_t header = 0;
  for (int i = 7; i >= 0; --i) header = header << 8 | static_cast<unsigned char>(bytes[i]);
  if (header > kMaxHeaderBytes) {
    fail("a header of " + std::to_string(header) + " bytes, must be at most 100000000");
  }
  if (header > bytes.size() - 8) {
    fail("a header of " + std::to_string(header) + " bytes in a file of " +
         std::to_string(bytes.size()));
  }
  std::vector<Entry> entries = parse_header(bytes.substr(8, header));
  const std::string_view data = bytes.substr(8 + header);
  // No overlaps and no holes: each begins where the one before ends.
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != end) {
      fail(quoted(entry.tensor.name) + ": data_offsets begin at " + std::to_string(entry.begin) +
           ", must begin at " + std::to_string(end) + ", where the tensor before ends");
    }
    end = entry.end;
  }
  if (end != static_cast<int64_t>(data.size())) {
    fail("the tensors have " + std::to_string(end) + " bytes, but the file has " +
         std::to_string(data.size()) + " after its header");
  }
  std::vector<Tensor> tensors;
  tensors.reserve(entries.size());
  for (Entry& entry : entries) {
    entry.tensor.data = data.data() + entry.begin;
    tensors.push_back(std::move(entry.tensor));
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(),
                         [](const Tensor& a, const Tensor& b) { return a.name == b.name; });
  if (twice != tensors.end()) fail("the file has " + quoted(twice->name) + " twice");
  return tensors;
}

std::string read_file(const char* path, uint64_t max_bytes) {
  const auto fail_to = [&](const char* what) {
    const std::string why = std::generic_category().message(errno);
    throw Error(FL_IO_ERROR, std::string(path) + ": cannot be " + what + ": " + why);
  };
  struct Descriptor {
    int fd;
    ~Descriptor() {
      if (fd >= 0) close(fd);
    }
  };
  // O_NONBLOCK: a pipe without a writer would block here
  const Descriptor file = {open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail_to("opened");
  struct stat facts;
  if (fstat(file.fd, &facts) != 0) fail_to("examined");
  if (!S_ISREG(facts.st_mode)) {
    throw Error(FL_IO_ERROR, std::string(path) + ": no regular file");
  }
  const auto size = static_cast<uint64_t>(facts.st_size);
  if (size > max_bytes) {
    throw Error(FL_IO_ERROR,
                std::string(path) + ": a file of " + std::to_string(size) +
                    " bytes, must be at most max_bytes = " + std::to_string(max_bytes));
  }
  std::string bytes;
  bytes.resize(size);
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t read_now = read(file.fd, bytes.data() + done, bytes.size() - done);
    if (read_now < 0 && errno == EINTR) continue;
    if (read_now < 0) fail_to("read");
    if (read_now == 0) bytes.resize(done);  // it has become shorter
    done += static_cast<size_t>(read_now);
  }
  return bytes;
}

}  // namespace fused_lstm::library
