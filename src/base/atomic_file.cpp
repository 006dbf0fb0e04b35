#include "base/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/limits.h"

namespace tandem {

AtomicFile::AtomicFile(std::filesystem::path path)
    : path_(std::move(path)), incomplete_(path_.string() + ".incomplete") {
  descriptor_ = ::open(incomplete_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor_ < 0) fail("make", errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(incomplete_.c_str());
}

void AtomicFile::fail(const char* what, int error) const {
  if (error == ENOSPC || error == EDQUOT) {
    throw InputError(fmt::format("the disk is full: cannot {} {}; free some room and start again", what,
                                 incomplete_.string()));
  }
  throw InputError(fmt::format("cannot {} {}: {}", what, incomplete_.string(), std::strerror(error)));
}

void AtomicFile::write(std::uint64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    const auto wanted = std::min(bytes.size(), limits::write_chunk_bytes);
    const auto written = ::pwrite(descriptor_, bytes.data(), wanted, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", errno);
    offset += static_cast<std::uint64_t>(written);
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

void AtomicFile::finish() {
  // The name says that all is there: so must the disk, should the machine go down now.
  if (::fsync(descriptor_) != 0) fail("write", errno);
  if (::rename(incomplete_.c_str(), path_.c_str()) != 0) fail("rename", errno);
  ::close(std::exchange(descriptor_, -1));
  const int folder = ::open(path_.parent_path().empty() ? "." : path_.parent_path().c_str(),
                            O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  ::fsync(folder);  // not every file system can; the file itself is safe
  ::close(folder);
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(0, bytes);
  file.finish();
}

}  // namespace tandem
