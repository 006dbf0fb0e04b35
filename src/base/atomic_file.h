// A file that has its name only once it is whole and on the disk: until then it is PATH.incomplete.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace tandem {

class AtomicFile {
 public:
  // Makes PATH.incomplete anew. InputError where it cannot be made.
  explicit AtomicFile(std::filesystem::path path);
  // Deletes what finish() has not put in its place.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::filesystem::path& incomplete() const { return incomplete_; }

  // InputError where the disk is full or fails.
  void write(std::uint64_t offset, std::string_view bytes);
  // To the disk, and under its name in place of what was there.
  void finish();

 private:
  [[noreturn]] void fail(const char* what, int error) const;

  std::filesystem::path path_;
  std::filesystem::path incomplete_;
  int descriptor_ = -1;
};

// A whole file at once.
void write_file(const std::filesystem::path& path, std::string_view bytes);

}  // namespace tandem
