#include "base/json_lines.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.h"
#include "base/limits.h"

namespace tandem {
namespace {

std::string shortened(std::string_view line) {
  constexpr std::size_t shown = 80;
  return line.size() <= shown ? std::string(line) : std::string(line.substr(0, shown)) + "…";
}

}  // namespace

void JsonLineReader::feed(std::string_view bytes) {
  if (start_ > 0 && start_ == buffer_.size()) {
    buffer_.clear();
    start_ = scanned_ = 0;
  }
  buffer_.append(bytes);
}

std::optional<nlohmann::json> JsonLineReader::next() {
  while (true) {
    const auto end = buffer_.find('\n', scanned_);
    if (end == std::string::npos) {
      buffer_.erase(0, start_);
      start_ = 0;
      scanned_ = buffer_.size();
      if (buffer_.size() > limits::pipe_line_bytes) {
        throw ClusterError(fmt::format("a control line is longer than {} bytes", limits::pipe_line_bytes));
      }
      return std::nullopt;
    }
    const std::string_view line(buffer_.data() + start_, end - start_);
    start_ = scanned_ = end + 1;
    if (line.empty()) continue;
    auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) {
      throw ClusterError(
          fmt::format("expected a JSON object on the control channel, got: {}", shortened(line)));
    }
    return object;
  }
}

std::string json_fault(const nlohmann::json::exception& error) {
  const std::string text = error.what();  // "[json.exception.parse_error.101] parse error at line 1, …"
  const auto end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

std::string to_json_line(const nlohmann::json& object) {
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
}

bool write_all(int descriptor, std::string_view line) {
  while (!line.empty()) {
    const auto written = ::write(descriptor, line.data(), line.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    line.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

}  // namespace tandem
