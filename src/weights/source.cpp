#include "weights/source.h"

#include <fmt/format.h>
#include <mlx/allocator.h>
#include <mlx/ops.h>

#include <utility>

#include "base/out_of_memory.h"

namespace tandem::weights {

mlx::core::Shape Slice::part_shape() const {
  mlx::core::Shape result(shape.begin(), shape.end());
  if (axis >= 0) result[axis] = part.size();
  return result;
}

mlx::core::array sliced(const mlx::core::array& whole, const Slice& slice, mlx::core::StreamOrDevice s) {
  if (slice.axis < 0) return whole;
  mlx::core::Shape begin(whole.ndim(), 0), end = whole.shape();
  begin[slice.axis] = slice.part.begin;
  end[slice.axis] = slice.part.end;
  return mlx::core::slice(whole, begin, end, s);
}

Pieces pieces_of(const Slice& slice) {
  const auto extent = [&](int axis) { return static_cast<std::uint64_t>(slice.shape[axis]); };
  std::uint64_t outer = 1, inner = 1;
  for (int i = 0; i < slice.axis; ++i) outer *= extent(i);
  for (int i = slice.axis + 1; i < static_cast<int>(slice.shape.size()); ++i) inner *= extent(i);
  if (slice.axis < 0) return {0, inner, inner, 1};
  Pieces pieces{static_cast<std::uint64_t>(slice.part.begin) * inner,
                static_cast<std::uint64_t>(slice.part.size()) * inner, extent(slice.axis) * inner, outer};
  if (pieces.run == pieces.stride) pieces = {pieces.first, pieces.run * outer, pieces.stride * outer, 1};
  return pieces;
}

mlx::core::array allocated(const mlx::core::Shape& shape, mlx::core::Dtype dtype, const std::string& what) {
  std::uint64_t bytes = mlx::core::size_of(dtype);
  for (const int extent : shape) bytes *= static_cast<std::uint64_t>(extent);
  auto buffer = mlx::core::allocator::malloc(bytes);
  if (bytes > 0 && !buffer.buffer().ptr()) throw_out_of_memory(bytes, what);
  return mlx::core::array(std::move(buffer), shape, dtype);
}

mlx::core::array allocated(const Slice& slice, mlx::core::Dtype dtype) {
  return allocated(slice.part_shape(), dtype, fmt::format("tensor \"{}\"", slice.name));
}

}  // namespace tandem::weights
