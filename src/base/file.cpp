#include "base/file.h"

#include <fmt/format.h>

#include <fstream>

#include "base/error.h"
#include "base/json_lines.h"
#include "base/limits.h"

namespace tandem {

std::optional<std::string> find_file(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::nullopt;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw InputError(fmt::format("{}: not a file; put the model's own file there", path.string()));
  }
  std::ifstream file(path, std::ios::binary);
  const auto size = std::filesystem::file_size(path, error);
  if (!file || error) {
    throw InputError(fmt::format("{}: cannot be read; check its permissions", path.string()));
  }
  if (size > limits::small_file_bytes) {
    throw InputError(
        fmt::format("{}: {} bytes, more than the {} that are allowed; is it the model's own file?",
                    path.string(), size, limits::small_file_bytes));
  }
  std::string bytes(size, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(size));
  if (file.gcount() != static_cast<std::streamsize>(size)) {
    throw InputError(
        fmt::format("{}: ends after {} of {} bytes; copy it again", path.string(), file.gcount(), size));
  }
  return bytes;
}

std::string read_file(const std::filesystem::path& path) {
  if (auto bytes = find_file(path)) return std::move(*bytes);
  throw InputError(fmt::format("{} is missing", path.string()));
}

std::optional<nlohmann::json> find_json_file(const std::filesystem::path& path) {
  const auto bytes = find_file(path);
  if (!bytes) return std::nullopt;
  nlohmann::json object;
  try {
    // What is shown of a wrong value is written by recursion.
    object = nlohmann::json::parse(*bytes, [&](int depth, auto, const auto&) {
      if (depth <= limits::json_depth) return true;
      throw InputError(fmt::format("{} is nested deeper than {}: it is no model's or plan's", path.string(),
                                   limits::json_depth));
    });
  } catch (const nlohmann::json::exception& error) {
    throw InputError(
        fmt::format("{} is no valid JSON (NaN and Infinity are none): {}", path.string(), json_fault(error)));
  }
  if (!object.is_object()) throw InputError(fmt::format("{} is no JSON object", path.string()));
  return object;
}

nlohmann::json read_json_file(const std::filesystem::path& path) {
  if (auto object = find_json_file(path)) return std::move(*object);
  throw InputError(fmt::format("{} is missing", path.string()));
}

}  // namespace tandem
