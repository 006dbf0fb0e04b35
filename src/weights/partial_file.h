// A blob of the hub's cache while it is downloaded: blobs/HASH.incomplete, as far as it has come, which
// becomes blobs/HASH when it is whole and its checksum right.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "weights/checksum.h"

namespace tandem::weights {

class PartialFile {
 public:
  // Opens or makes BLOB.incomplete; one that is longer than `size` starts over. InputError where it cannot
  // be written.
  PartialFile(const std::filesystem::path& blob, std::uint64_t size, const Checksum& checksum);
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;
  ~PartialFile();

  std::uint64_t bytes() const { return bytes_; }  // there by now
  bool whole() const { return bytes_ == size_; }

  // Takes a piece of what was there at the start into the checksum; true when nothing of it is left.
  bool check_some();

  // Adds bytes at the end, once check_some() is done. False where they are more than the file has; InputError
  // where the disk is full.
  bool append(std::string_view bytes);
  // Forgets all bytes.
  void restart();
  // Puts a whole file in its place. DownloadError where the checksum is wrong: the file is deleted.
  void finish();

 private:
  [[noreturn]] void fail(const char* what, int error) const;

  std::filesystem::path blob_;
  std::filesystem::path path_;
  std::uint64_t size_;
  Checksum checksum_;
  Hasher hasher_;
  int descriptor_ = -1;
  std::uint64_t bytes_ = 0;
  std::uint64_t checked_bytes_ = 0;
};

}  // namespace tandem::weights
