#include "text/file.h"

#include <fmt/format.h>

#include <fstream>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::text {

std::optional<std::string> read_file(const std::filesystem::path& path) {
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
  if (size > limits::json_file_bytes) {
    throw InputError(
        fmt::format("{}: {} bytes, more than the {} that are allowed; is it the model's own file?",
                    path.string(), size, limits::json_file_bytes));
  }
  std::string bytes(size, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(size));
  if (file.gcount() != static_cast<std::streamsize>(size)) {
    throw InputError(
        fmt::format("{}: ends after {} of {} bytes; copy it again", path.string(), file.gcount(), size));
  }
  return bytes;
}

std::optional<nlohmann::json> read_json_object(const std::filesystem::path& path) {
  const auto bytes = read_file(path);
  if (!bytes) return std::nullopt;
  auto object = nlohmann::json::parse(*bytes, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    throw InputError(fmt::format("{}: not a JSON object; copy the model's own file again", path.string()));
  }
  return object;
}

}  // namespace tandem::text
