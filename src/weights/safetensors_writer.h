// Writing the safetensors format (safetensors.h): the header first, for which names, dtypes and shapes must
// be known, then the bytes in any order, so that no tensor need be whole in memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/atomic_file.h"

namespace tandem::weights {

struct TensorSpec {
  std::string name;
  std::string dtype;  // as the file spells it: "BF16", "U32", …
  std::vector<std::int64_t> shape;

  std::uint64_t bytes() const;
};

class SafetensorsWriter {
 public:
  // The tensors lie in the order given. The file has its name only after finish(), and PATH.incomplete is
  // deleted without it. Asserts dtypes that the format has, and names that differ. InputError where it cannot
  // be written, here and below.
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<TensorSpec>& tensors);

  // Of the whole file with these tensors.
  static std::uint64_t file_bytes(const std::vector<TensorSpec>& tensors);

  const std::filesystem::path& incomplete() const { return file_.incomplete(); }

  // `bytes`, little-endian and row-major, at byte `offset` of a tensor's own; no byte twice.
  void write(const std::string& tensor, std::uint64_t offset, std::string_view bytes);
  // Asserts that every byte was written.
  void finish();

 private:
  struct Place {
    std::uint64_t begin = 0, bytes = 0;
  };

  AtomicFile file_;
  std::map<std::string, Place> places_;
  std::uint64_t missing_bytes_ = 0;
};

}  // namespace tandem::weights
