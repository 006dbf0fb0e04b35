// Text that the Rust library hands over.
#pragma once

#include <tandem_text.h>

#include <string>

namespace tandem::text {

// The out-parameter of a call into Rust: `call(..., text.out())`, then `text.str()`.
class RustString {
 public:
  RustString() = default;
  RustString(const RustString&) = delete;
  RustString& operator=(const RustString&) = delete;
  ~RustString() { tandem_string_free(string_); }

  tandem_string* out() { return &string_; }
  std::string str() const {
    return string_.data == nullptr ? std::string() : std::string(string_.data, string_.size);
  }

 private:
  tandem_string string_{nullptr, 0};
};

}  // namespace tandem::text
