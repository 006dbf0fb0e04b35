// Slices in a file of their own: their bytes one after the other, then 64 digits for each, its SHA-256, or
// blanks where it is not there. What they are, and so how long, is known to whoever opens it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/atomic_file.h"

namespace tandem::weights {

// Where each of slices of `sizes` bytes begins; then where the checksums do.
std::vector<std::uint64_t> slice_offsets(const std::vector<std::uint64_t>& sizes);

class SliceFileWriter {
 public:
  // The file has its name only after finish(). InputError where the disk is full, has too little room for
  // all, or fails, here and below.
  SliceFileWriter(const std::filesystem::path& path, const std::vector<std::uint64_t>& sizes);

  // Slice `index`, all of it, once.
  void write(std::size_t index, std::string_view bytes);
  void finish();

 private:
  std::vector<std::uint64_t> offsets_;
  std::string digits_;
  AtomicFile file_;
};

class SliceFileReader {
 public:
  // InputError where the file cannot be opened or is not as long as these slices make it.
  SliceFileReader(std::filesystem::path path, const std::vector<std::uint64_t>& sizes);
  ~SliceFileReader();
  SliceFileReader(const SliceFileReader&) = delete;
  SliceFileReader& operator=(const SliceFileReader&) = delete;

  // Slice `index` into memory of its size. InputError names the file where that cannot be read, the slice is
  // not there, or its checksum is another.
  void read(std::size_t index, std::span<char> target) const;

 private:
  void read_at(std::uint64_t offset, std::span<char> target) const;

  std::filesystem::path path_;
  std::vector<std::uint64_t> offsets_;
  std::string digits_;
  int descriptor_ = -1;
};

}  // namespace tandem::weights
