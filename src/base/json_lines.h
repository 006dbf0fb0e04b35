// One JSON object a line over a descriptor: the control channel of a worker.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace tandem {

// Cuts a byte stream into lines and parses each. Pure: fed by whoever reads the descriptor.
// Throws ClusterError where a line passes limits::pipe_line_bytes, is no JSON object, or is no UTF-8.
class JsonLineReader {
 public:
  void feed(std::string_view bytes);
  // The next whole line's object, nothing until one is complete. Empty lines are passed over.
  std::optional<nlohmann::json> next();

 private:
  std::string buffer_;
  std::size_t start_ = 0;    // first byte not yet given out
  std::size_t scanned_ = 0;  // no newline in [start_, scanned_)
};

// What is wrong with a text that is no JSON, without the library's own name for it.
std::string json_fault(const nlohmann::json::exception& error);

// The line for `object`, with its newline. Bytes that are no UTF-8 are replaced by U+FFFD.
std::string to_json_line(const nlohmann::json& object);

// Writes all of `line` to the descriptor; false where the other end is gone.
bool write_all(int descriptor, std::string_view line);

}  // namespace tandem
