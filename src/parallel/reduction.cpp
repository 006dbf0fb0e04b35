#include "parallel/reduction.h"

#include <mlx/types/half_types.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;

// The upper half of a float. By its bits rather than MLX's type, so that loops over it vectorise.
struct Bfloat16 {
  std::uint16_t bits;
};

float widen(Bfloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }
float widen(mx::float16_t value) { return static_cast<float>(value); }
template <typename T>
T widen(T value) {
  return value;
}

void narrow(float value, Bfloat16& out) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  out.bits = static_cast<std::uint16_t>(value == value ? rounded : 0x7fc0);
}
void narrow(float value, mx::float16_t& out) { out = static_cast<mx::float16_t>(value); }
template <typename T>
void narrow(T value, T& out) {
  out = value;
}

// Integers wrap around, bools are or-ed.
template <typename T>
T add(T a, T b) {
  if constexpr (std::is_same_v<T, bool>) {
    return a || b;
  } else if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
  } else {
    return a + b;
  }
}

template <typename T, typename Out = T, typename Op>
void reduce_typed(std::span<const char* const> parts, char* out, std::size_t count, Op op) {
  using Accumulator = decltype(widen(T{}));
  // Blocks stay in the first-level cache while the parts are added.
  constexpr std::size_t block = 1024;
  Accumulator sums[block];
  for (std::size_t first = 0; first < count; first += block) {
    const std::size_t size = std::min(block, count - first);
    for (std::size_t part = 0; part < parts.size(); ++part) {
      const T* values = reinterpret_cast<const T*>(parts[part]) + first;
      if (part == 0) {
        for (std::size_t i = 0; i < size; ++i) sums[i] = widen(values[i]);
      } else {
        for (std::size_t i = 0; i < size; ++i) sums[i] = op(sums[i], widen(values[i]));
      }
    }
    Out* target = reinterpret_cast<Out*>(out) + first;
    for (std::size_t i = 0; i < size; ++i) narrow(sums[i], target[i]);
  }
}

template <typename T>
void reduce_any(ReduceOp op, std::span<const char* const> parts, char* out, std::size_t count) {
  switch (op) {
    case ReduceOp::sum:
      return reduce_typed<T>(parts, out, count, [](auto a, auto b) { return add(a, b); });
    // b != b: not a number, which wins as in mlx::core::maximum.
    case ReduceOp::max:
      return reduce_typed<T>(parts, out, count, [](auto a, auto b) { return b > a || b != b ? b : a; });
    case ReduceOp::min:
      return reduce_typed<T>(parts, out, count, [](auto a, auto b) { return b < a || b != b ? b : a; });
  }
}

}  // namespace

void reduce(ReduceOp op, mx::Dtype dtype, std::span<const char* const> parts, char* out, std::size_t count) {
  switch (dtype.val()) {
    case mx::Dtype::Val::bool_:
      return reduce_any<bool>(op, parts, out, count);
    case mx::Dtype::Val::uint8:
      return reduce_any<std::uint8_t>(op, parts, out, count);
    case mx::Dtype::Val::uint16:
      return reduce_any<std::uint16_t>(op, parts, out, count);
    case mx::Dtype::Val::uint32:
      return reduce_any<std::uint32_t>(op, parts, out, count);
    case mx::Dtype::Val::uint64:
      return reduce_any<std::uint64_t>(op, parts, out, count);
    case mx::Dtype::Val::int8:
      return reduce_any<std::int8_t>(op, parts, out, count);
    case mx::Dtype::Val::int16:
      return reduce_any<std::int16_t>(op, parts, out, count);
    case mx::Dtype::Val::int32:
      return reduce_any<std::int32_t>(op, parts, out, count);
    case mx::Dtype::Val::int64:
      return reduce_any<std::int64_t>(op, parts, out, count);
    case mx::Dtype::Val::float16:
      return reduce_any<mx::float16_t>(op, parts, out, count);
    case mx::Dtype::Val::bfloat16:
      return reduce_any<Bfloat16>(op, parts, out, count);
    case mx::Dtype::Val::float32:
      return reduce_any<float>(op, parts, out, count);
    case mx::Dtype::Val::float64:
      return reduce_any<double>(op, parts, out, count);
    case mx::Dtype::Val::complex64:
      break;
  }
  throw std::invalid_argument("a complex array cannot be reduced over ranks");
}

void sum_bfloat16(std::span<const char* const> parts, float* out, std::size_t count) {
  reduce_typed<Bfloat16, float>(parts, reinterpret_cast<char*>(out), count,
                                [](float a, float b) { return a + b; });
}

void narrow_to_bfloat16(const float* from, char* to, std::size_t count) {
  auto* narrowed = reinterpret_cast<Bfloat16*>(to);
  for (std::size_t i = 0; i < count; ++i) narrow(from[i], narrowed[i]);
}

void widen_bfloat16(const char* from, float* to, std::size_t count) {
  const auto* narrowed = reinterpret_cast<const Bfloat16*>(from);
  for (std::size_t i = 0; i < count; ++i) to[i] = widen(narrowed[i]);
}

}  // namespace tandem::parallel
