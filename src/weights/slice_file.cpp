#include "weights/slice_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/error.h"
#include "base/limits.h"
#include "weights/checksum.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t digits = 64;

std::string_view digits_of(std::string_view all, std::size_t index) {
  return all.substr(index * digits, digits);
}

// The path, once there is room for so many bytes beside it.
fs::path with_room(const fs::path& path, std::uint64_t bytes) {
  std::error_code error;
  const auto space = fs::space(path.parent_path(), error);
  if (!error && space.available < bytes) {
    throw InputError(fmt::format("{} needs {} bytes, but its disk has {} left", path.string(), bytes,
                                 static_cast<std::uint64_t>(space.available)));
  }
  return path;
}

}  // namespace

std::vector<std::uint64_t> slice_offsets(const std::vector<std::uint64_t>& sizes) {
  std::vector<std::uint64_t> offsets{0};
  for (const auto size : sizes) offsets.push_back(offsets.back() + size);
  return offsets;
}

SliceFileWriter::SliceFileWriter(const fs::path& path, const std::vector<std::uint64_t>& sizes)
    : offsets_(slice_offsets(sizes)),
      digits_(sizes.size() * digits, ' '),
      file_(with_room(path, offsets_.back() + digits_.size())) {}

void SliceFileWriter::write(std::size_t index, std::string_view bytes) {
  assert(bytes.size() == offsets_[index + 1] - offsets_[index]);
  file_.write(offsets_[index], bytes);
  digits_.replace(index * digits, digits, sha256_of(bytes));
}

void SliceFileWriter::finish() {
  file_.write(offsets_.back(), digits_);
  file_.finish();
}

SliceFileReader::SliceFileReader(fs::path path, const std::vector<std::uint64_t>& sizes)
    : path_(std::move(path)), offsets_(slice_offsets(sizes)), digits_(sizes.size() * digits, ' ') {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0)
    throw InputError(fmt::format("cannot open {}: {}", path_.string(), std::strerror(errno)));
  try {
    struct stat status {};
    const std::uint64_t bytes = offsets_.back() + digits_.size();
    if (::fstat(descriptor_, &status) != 0 || static_cast<std::uint64_t>(status.st_size) != bytes)
      throw InputError(fmt::format("{} has not the {} bytes of its slices", path_.string(), bytes));
    read_at(offsets_.back(), digits_);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

SliceFileReader::~SliceFileReader() { ::close(descriptor_); }

void SliceFileReader::read(std::size_t index, std::span<char> target) const {
  assert(target.size() == offsets_[index + 1] - offsets_[index]);
  Hasher hasher(ChecksumKind::sha256, target.size());
  for (std::size_t done = 0; done < target.size();) {
    const auto chunk = target.subspan(done, std::min(target.size() - done, limits::read_chunk_bytes));
    read_at(offsets_[index] + done, chunk);
    hasher.update({chunk.data(), chunk.size()});
    done += chunk.size();
  }
  if (hasher.finish() != digits_of(digits_, index))
    throw InputError(fmt::format("{} is damaged: slice {} has another checksum", path_.string(), index));
}

void SliceFileReader::read_at(std::uint64_t offset, std::span<char> target) const {
  while (!target.empty()) {
    const auto got = ::pread(descriptor_, target.data(), target.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw InputError(fmt::format("cannot read {}: {}", path_.string(),
                                   got < 0 ? std::strerror(errno) : "it ends too soon"));
    }
    offset += static_cast<std::uint64_t>(got);
    target = target.subspan(static_cast<std::size_t>(got));
  }
}

}  // namespace tandem::weights
