#include "weights/checksum.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <stdexcept>

namespace tandem::weights {
namespace {

void check(int succeeded) {
  if (succeeded != 1) throw std::runtime_error("libcrypto cannot compute a checksum");
}

EVP_MD_CTX* digest(const std::shared_ptr<void>& context) { return static_cast<EVP_MD_CTX*>(context.get()); }

}  // namespace

std::optional<Checksum> checksum_from_hex(std::string_view hex) {
  const bool digits = std::all_of(hex.begin(), hex.end(),
                                  [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  if (digits && hex.size() == 64) return Checksum{ChecksumKind::sha256, std::string(hex)};
  if (digits && hex.size() == 40) return Checksum{ChecksumKind::git_sha1, std::string(hex)};
  return std::nullopt;
}

std::optional<Checksum> checksum_from_etag(std::string_view etag) {
  if (etag.starts_with("W/")) etag.remove_prefix(2);
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
  return checksum_from_hex(etag);
}

Hasher::Hasher(ChecksumKind kind, std::uint64_t size)
    : context_(EVP_MD_CTX_new(), [](void* context) { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context)); }) {
  const bool git = kind == ChecksumKind::git_sha1;
  check(context_ ? EVP_DigestInit_ex(digest(context_), git ? EVP_sha1() : EVP_sha256(), nullptr) : 0);
  if (!git) return;
  const std::string header = fmt::format("blob {}", size);
  update({header.c_str(), header.size() + 1});
}

void Hasher::update(std::string_view bytes) {
  check(EVP_DigestUpdate(digest(context_), bytes.data(), bytes.size()));
}

std::string Hasher::finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> bytes;
  unsigned size = 0;
  check(EVP_DigestFinal_ex(digest(context_), bytes.data(), &size));
  std::string hex;
  for (unsigned i = 0; i < size; ++i) hex += fmt::format("{:02x}", bytes[i]);
  return hex;
}

std::string sha256_of(std::string_view bytes) {
  Hasher hasher(ChecksumKind::sha256, bytes.size());
  hasher.update(bytes);
  return hasher.finish();
}

}  // namespace tandem::weights
