// Hashes that are the same on every machine and in every version, for numbers that depend on a name or a
// place.
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

// The bits of x mixed, so that neighbours have nothing in common (splitmix64, Steele et al. 2014).
inline std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Of 53 random bits: in [0, 1).
inline double unit_interval(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

}  // namespace tandem
