// The safetensors file format (huggingface/safetensors, README "Format"): 8 bytes little-endian header
// length, the header as JSON {name: {dtype, shape, data_offsets: [begin, end]}}, then the tensors' bytes,
// little-endian, row-major.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tandem::weights {

struct TensorInfo {
  std::string dtype;  // as the file spells it: "BF16", "F32", …
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // bytes, from the file's start
  std::uint64_t end = 0;
};

using TensorTable = std::map<std::string, TensorInfo, std::less<>>;

// Bytes of one element; nothing for a dtype the format does not have.
std::optional<int> dtype_bytes(std::string_view dtype);

// Parses the header's JSON, for a file of `file_bytes` in which tensor data starts at `data_begin`. Checks
// every offset and size against the file and each other. InputError (without the file's name) says what is
// wrong.
TensorTable parse_safetensors_header(std::string_view header, std::uint64_t data_begin,
                                     std::uint64_t file_bytes);

// An open file. Reads are independent and thread-safe (pread).
class SafetensorsFile {
 public:
  // InputError names the file.
  explicit SafetensorsFile(std::filesystem::path path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const TensorTable& tensors() const { return tensors_; }

  // `bytes` from `offset` of the file into `target`. InputError where the file ends before or cannot be read.
  void read(std::uint64_t offset, std::uint64_t bytes, char* target) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  TensorTable tensors_;
};

}  // namespace tandem::weights
