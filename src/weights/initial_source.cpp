#include "weights/initial_source.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/hash.h"
#include "weights/random_source.h"

namespace tandem::weights {
namespace {

namespace mx = mlx::core;

// Box and Muller's method (1958) on two numbers that belong to the place.
double normal_at(std::uint64_t key, std::uint64_t place) {
  const double radius = std::sqrt(-2 * std::log(1 - unit_interval(mixed(key ^ mixed(2 * place)))));
  return radius * std::cos(2 * std::numbers::pi * unit_interval(mixed(key ^ mixed(2 * place + 1))));
}

}  // namespace

bool InitialSource::has(const std::string& name) const {
  return is_checkpoint_name(name) && !name.ends_with(".scales");
}

std::uint64_t InitialSource::bytes(const Slice& slice) const {
  const Pieces pieces = pieces_of(slice);
  return pieces.runs * pieces.run * sizeof(float);
}

mx::array InitialSource::read(const Slice& slice, const OnBytes& on_bytes) const {
  mx::array made = allocated(slice, mx::float32);
  auto* to = made.data<float>();
  const Pieces pieces = pieces_of(slice);
  const std::uint64_t key = mixed(fnv1a(slice.name, seed_));
  for (std::uint64_t run = 0; run < pieces.runs; ++run, to += pieces.run) {
    const std::uint64_t first = pieces.first + run * pieces.stride;
    if (slice.shape.size() == 1) {
      std::fill_n(to, pieces.run, slice.name.ends_with("bias") ? 0.0F : 1.0F);
      continue;
    }
    for (std::uint64_t i = 0; i < pieces.run; ++i)
      to[i] = static_cast<float>(deviation_ * normal_at(key, first + i));
  }
  on_bytes(bytes(slice));
  return made;
}

}  // namespace tandem::weights
