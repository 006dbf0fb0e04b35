// The checksums by which the hub names a file: SHA-256 of its bytes for large files (Git LFS), git's name of
// the blob for the others: SHA-1 of "blob SIZE\0" and the bytes (Pro Git, "Git Objects").
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace tandem::weights {

enum class ChecksumKind { sha256, git_sha1 };

struct Checksum {
  ChecksumKind kind = ChecksumKind::sha256;
  std::string hex;  // 64 or 40 digits, lower case

  bool operator==(const Checksum&) const = default;
};

// The kind goes by the number of digits. Nothing where `hex` is neither.
std::optional<Checksum> checksum_from_hex(std::string_view hex);
// From an ETag header: quoted, perhaps weak.
std::optional<Checksum> checksum_from_etag(std::string_view etag);

// A checksum over bytes that come in pieces.
class Hasher {
 public:
  // `size`: of the whole file, which git's name begins with.
  Hasher(ChecksumKind kind, std::uint64_t size);

  void update(std::string_view bytes);
  // In hexadecimal digits; once, at the end.
  std::string finish();

 private:
  std::shared_ptr<void> context_;
};

// In 64 hexadecimal digits.
std::string sha256_of(std::string_view bytes);

}  // namespace tandem::weights
