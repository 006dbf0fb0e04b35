// A model folder that lives as long as its test.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>

namespace tandem::text {

class ModelFolder {
 public:
  ModelFolder() {
    auto pattern = (std::filesystem::temp_directory_path() / "tandem-text-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = pattern;
  }
  ~ModelFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ModelFolder(const ModelFolder&) = delete;
  ModelFolder& operator=(const ModelFolder&) = delete;

  ModelFolder& with(std::string_view name, std::string_view bytes) {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return *this;
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline const std::filesystem::path source_dir = TANDEM_SOURCE_DIR;

inline std::string bytes_of(const std::filesystem::path& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

inline nlohmann::ordered_json json_of(const std::filesystem::path& path) {
  return nlohmann::ordered_json::parse(bytes_of(path));
}

// The message of the Error that `body` throws.
template <typename Error, typename Body>
std::string message_of(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing thrown";
  return "";
}

// That `text` holds all of `parts`.
inline testing::AssertionResult holds(const std::string& text, std::initializer_list<std::string> parts) {
  for (const auto& part : parts) {
    if (text.find(part) == std::string::npos) {
      return testing::AssertionFailure() << '"' << text << "\" lacks \"" << part << '"';
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace tandem::text
