#include "weights/random_source.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string_view>

#include "base/hash.h"

namespace tandem::weights {
namespace {

namespace mx = mlx::core;

constexpr std::uint64_t block_elements = 65'521;  // a prime: no row of a matrix begins where another does
constexpr double deviation = 0.02;

mx::array evaluated(mx::array array) {
  array.eval();
  return array;
}

// Sums of three uniform numbers: near enough to a normal distribution, the same with every standard library.
mx::array make_values(mx::Dtype dtype) {
  std::mt19937 random(1);
  const auto uniform = [&] { return random() / 4294967296.0; };
  std::vector<float> values(block_elements);
  for (auto& value : values) {
    value = static_cast<float>((uniform() + uniform() + uniform() - 1.5) * 2 * deviation);
  }
  return evaluated(mx::astype(mx::array(values.data(), {static_cast<int>(block_elements)}, mx::float32),
                              dtype, mx::Device::cpu));
}

mx::array make_codes() {
  std::mt19937 random(2);
  std::vector<std::uint32_t> codes(block_elements);
  for (auto& code : codes) code = static_cast<std::uint32_t>(random());
  return evaluated(mx::array(codes.data(), {static_cast<int>(block_elements)}, mx::uint32));
}

// The deviation of a code, all of which are as likely.
double code_deviation(int bits) { return std::sqrt((std::pow(4.0, bits) - 1) / 12); }

void fill_from_block(const Slice& slice, const mx::array& block, char* to) {
  const std::uint64_t size = block.itemsize(), offset = fnv1a(slice.name) % block_elements;
  const Pieces pieces = pieces_of(slice);
  for (std::uint64_t run = 0; run < pieces.runs; ++run) {
    std::uint64_t at = (offset + pieces.first + run * pieces.stride) % block_elements;
    for (std::uint64_t left = pieces.run; left > 0; at = 0) {
      const std::uint64_t count = std::min(left, block_elements - at);
      std::memcpy(to, block.data<char>() + at * size, count * size);
      to += count * size;
      left -= count;
    }
  }
}

}  // namespace

RandomSource::RandomSource(mx::Dtype dtype, int bits)
    : dtype_(dtype), bits_(bits), values_(make_values(dtype)), codes_(make_codes()) {}

bool is_checkpoint_name(const std::string& name) {
  const auto contains = [&](const char* part) { return name.find(part) != name.npos; };
  return !name.ends_with("_scale_inv") && !contains("switch_mlp") && !contains("embed_q") &&
         !contains("unembed_out");
}

bool RandomSource::has(const std::string& name) const {
  if (name.ends_with(".scales")) return bits_ > 0 && !name.ends_with("mlp.gate.scales");
  return is_checkpoint_name(name);
}

std::uint64_t RandomSource::bytes(const Slice& slice) const {
  const Pieces pieces = pieces_of(slice);
  return pieces.runs * pieces.run *
         (slice.element == Element::codes ? codes_.itemsize() : values_.itemsize());
}

mx::array RandomSource::read(const Slice& slice, const OnBytes& on_bytes) const {
  const std::string_view name = slice.name;
  const auto filled = [&](double value) {
    return evaluated(mx::full(slice.part_shape(), static_cast<float>(value), dtype_, mx::Device::cpu));
  };
  const double scale = bits_ > 0 ? deviation / code_deviation(bits_) : 0;
  on_bytes(bytes(slice));
  if (name.ends_with(".scales")) return filled(scale);
  if (name.ends_with(".biases")) return filled(-scale * (std::pow(2.0, bits_) - 1) / 2);
  if (name.ends_with(".bias")) return filled(0);
  if (slice.shape.size() == 1) return filled(1);
  const mx::array& block = slice.element == Element::codes ? codes_ : values_;
  mx::array made = allocated(slice, block.dtype());
  fill_from_block(slice, block, made.data<char>());
  return made;
}

}  // namespace tandem::weights
