#include "weights/partial_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::weights {

namespace fs = std::filesystem;

PartialFile::PartialFile(const fs::path& blob, std::uint64_t size, const Checksum& checksum)
    : blob_(blob),
      path_(blob.string() + ".incomplete"),
      size_(size),
      checksum_(checksum),
      hasher_(checksum.kind, size) {
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  struct stat status {};
  if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) fail("open", errno);
  bytes_ = static_cast<std::uint64_t>(status.st_size);
  if (bytes_ > size_) restart();
}

PartialFile::~PartialFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void PartialFile::fail(const char* what, int error) const {
  if (error == ENOSPC || error == EDQUOT) {
    throw InputError(fmt::format(
        "the disk is full: {} needs {} more bytes; free some and pull again, it goes on from there",
        path_.string(), size_ - bytes_));
  }
  throw InputError(fmt::format("cannot {} {}: {}", what, path_.string(), std::strerror(error)));
}

bool PartialFile::check_some() {
  if (checked_bytes_ == bytes_) return true;
  std::string piece(std::min<std::uint64_t>(limits::read_chunk_bytes, bytes_ - checked_bytes_), '\0');
  const auto read = ::pread(descriptor_, piece.data(), piece.size(), static_cast<off_t>(checked_bytes_));
  if (read <= 0) fail("read", read < 0 ? errno : EIO);
  hasher_.update({piece.data(), static_cast<std::size_t>(read)});
  checked_bytes_ += static_cast<std::uint64_t>(read);
  return checked_bytes_ == bytes_;
}

bool PartialFile::append(std::string_view bytes) {
  if (bytes.size() > size_ - bytes_) return false;
  while (!bytes.empty()) {
    const auto written = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(bytes_));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", errno);
    hasher_.update(bytes.substr(0, static_cast<std::size_t>(written)));
    bytes_ += static_cast<std::uint64_t>(written);
    checked_bytes_ = bytes_;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

void PartialFile::restart() {
  if (::ftruncate(descriptor_, 0) != 0) fail("empty", errno);
  bytes_ = checked_bytes_ = 0;
  hasher_ = Hasher(checksum_.kind, size_);
}

void PartialFile::finish() {
  if (const auto made = hasher_.finish(); made != checksum_.hex) {
    ::unlink(path_.c_str());
    throw DownloadError(fmt::format(
        "{} came with a wrong checksum ({}) and is deleted; pull again, and if it comes wrong once "
        "more, the server or the way to it spoils it",
        blob_.string(), made));
  }
  // The name says that all is there: so must the disk, should the machine go down now.
  if (::fsync(descriptor_) != 0) fail("write", errno);
  if (::rename(path_.c_str(), blob_.c_str()) != 0) fail("rename", errno);
}

}  // namespace tandem::weights
