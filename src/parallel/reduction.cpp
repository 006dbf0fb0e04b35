#include "parallel/reduction.h"

#include <mlx/types/half_types.h>

#include <algorithm>
#include <stdexcept>
#include <type_traits>

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;

template <typename T, typename Accumulator, typename Op>
void reduce_typed(std::span<const char* const> parts, char* out, std::size_t count, Op op) {
  // Blocks stay in the first-level cache while the parts are added.
  constexpr std::size_t block = 1024;
  Accumulator sums[block];
  for (std::size_t first = 0; first < count; first += block) {
    const std::size_t size = std::min(block, count - first);
    for (std::size_t part = 0; part < parts.size(); ++part) {
      const T* values = reinterpret_cast<const T*>(parts[part]) + first;
      for (std::size_t i = 0; i < size; ++i) {
        const auto value = static_cast<Accumulator>(values[i]);
        sums[i] = part == 0 ? value : op(sums[i], value);
      }
    }
    T* target = reinterpret_cast<T*>(out) + first;
    for (std::size_t i = 0; i < size; ++i) target[i] = static_cast<T>(sums[i]);
  }
}

template <typename T>
void reduce_any(ReduceOp op, std::span<const char* const> parts, char* out, std::size_t count) {
  constexpr bool half = std::is_same_v<T, mx::float16_t> || std::is_same_v<T, mx::bfloat16_t>;
  using Accumulator = std::conditional_t<half, float, T>;
  switch (op) {
    case ReduceOp::sum:
      return reduce_typed<T, Accumulator>(parts, out, count,
                                          [](auto a, auto b) { return static_cast<Accumulator>(a + b); });
    case ReduceOp::max:
      return reduce_typed<T, Accumulator>(parts, out, count, [](auto a, auto b) { return b > a ? b : a; });
    case ReduceOp::min:
      return reduce_typed<T, Accumulator>(parts, out, count, [](auto a, auto b) { return b < a ? b : a; });
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
      return reduce_any<mx::bfloat16_t>(op, parts, out, count);
    case mx::Dtype::Val::float32:
      return reduce_any<float>(op, parts, out, count);
    case mx::Dtype::Val::float64:
      return reduce_any<double>(op, parts, out, count);
    case mx::Dtype::Val::complex64:
      break;
  }
  throw std::invalid_argument("a complex array cannot be reduced over ranks");
}

}  // namespace tandem::parallel
