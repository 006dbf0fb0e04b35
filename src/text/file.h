// The small text files of a model folder.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace tandem::text {

// The file's bytes; nothing where there is no such file. InputError where it cannot be read or passes
// limits::json_file_bytes.
std::optional<std::string> read_file(const std::filesystem::path& path);

// The object in a JSON file; nothing where there is no such file. InputError as above, and where it holds
// none.
std::optional<nlohmann::json> read_json_object(const std::filesystem::path& path);

}  // namespace tandem::text
