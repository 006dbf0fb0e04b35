// A hash that is the same on every machine and in every version, for numbers that depend on a name.
#pragma once

#include <cstdint>
#include <string_view>

namespace tandem {

// FNV-1a, 64 bit, from another start for another seed.
inline std::uint64_t fnv1a(std::string_view text, std::uint64_t seed = 0) {
  std::uint64_t value = 14695981039346656037u ^ seed;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return value;
}

}  // namespace tandem
