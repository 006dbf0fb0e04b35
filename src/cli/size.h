// Sizes on the command line.
#pragma once

#include <cstdint>
#include <string>

namespace tandem::cli {

// "5GB" (10^9 bytes), "500 MB", "1.5GiB" (2^30 bytes), "800000": bytes, at least one. InputError names
// `flag`.
std::uint64_t parse_size(const std::string& text, const std::string& flag);

}  // namespace tandem::cli
