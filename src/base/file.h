// Small files: a model folder's texts, a plan, ids.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace tandem {

// The file's bytes; nothing where there is no such file. InputError where it cannot be read or passes
// limits::small_file_bytes.
std::optional<std::string> find_file(const std::filesystem::path& path);
// The same, with InputError where there is no such file.
std::string read_file(const std::filesystem::path& path);

// The object in a JSON file; nothing where there is no such file. InputError as above, and where it holds no
// JSON object.
std::optional<nlohmann::json> find_json_file(const std::filesystem::path& path);
nlohmann::json read_json_file(const std::filesystem::path& path);

}  // namespace tandem
