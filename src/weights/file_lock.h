// A lock on a file (flock(2)): held by one process at a time, let go when it dies, however it dies.
#pragma once

#include <filesystem>
#include <optional>
#include <utility>

namespace tandem::weights {

class FileLock {
 public:
  // Makes the file and its folders where they are missing; nothing where another holds the lock. InputError
  // where the file cannot be made or locked.
  static std::optional<FileLock> try_lock(const std::filesystem::path& file);

  FileLock(FileLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileLock& operator=(FileLock&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~FileLock();

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}

  int descriptor_ = -1;
};

}  // namespace tandem::weights
