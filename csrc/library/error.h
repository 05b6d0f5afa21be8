// What the C interface turns into a status and a line of text.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "library/fused_lstm.h"

namespace fused_lstm::library {

class Error : public std::runtime_error {
 public:
  Error(fl_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  fl_status status() const { return status_; }

 private:
  fl_status status_;
};

// A name from a file, which may hold anything, for a message.
inline std::string quoted(std::string_view name) {
  constexpr size_t most = 80;
  std::string text = "'";
  for (const char c : name.substr(0, most)) text += c >= ' ' && c <= '~' ? c : '?';
  return text + (name.size() > most ? "...'" : "'");
}

}  // namespace fused_lstm::library
