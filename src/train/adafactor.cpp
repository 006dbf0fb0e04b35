#include "train/adafactor.h"

#include <mlx/ops.h>

#include <cmath>

#include "parallel/collectives.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

// The slice of means along `axis`.
weights::Slice without(const weights::Slice& slice, int axis) {
  weights::Slice rest = slice;
  rest.shape.erase(rest.shape.begin() + axis);
  if (slice.axis == axis) {
    rest.axis = -1;
    rest.part = {};
  } else if (slice.axis > axis) {
    --rest.axis;
  }
  return rest;
}

// Over the whole axis, whichever rank has its parts.
mx::array mean_along(int axis, const mx::array& x, const weights::Slice& slice,
                     const mx::distributed::Group& group) {
  const mx::array sum = mx::sum(x, axis);
  return mx::divide(slice.axis == axis ? parallel::sum(sum, group) : sum,
                    mx::array(static_cast<float>(slice.shape[axis])));
}

mx::array clipped(const mx::array& x, const weights::Slice& slice, const mx::distributed::Group& group) {
  double size = 1;
  for (const int extent : slice.shape) size *= extent;
  mx::array squares = mx::sum(mx::square(x));
  if (slice.axis >= 0) squares = parallel::sum(squares, group);
  const mx::array root_mean_square = mx::sqrt(mx::divide(squares, mx::array(static_cast<float>(size))));
  return mx::divide(x, mx::maximum(root_mean_square, mx::array(1.0F)));
}

}  // namespace

std::vector<weights::Slice> adafactor_state(const weights::Slice& slice) {
  const int axes = static_cast<int>(slice.shape.size());
  if (axes < 2) return {slice};
  return {without(slice, axes - 1), without(slice, axes - 2)};
}

mx::array adafactor_direction(const mx::array& gradient, std::vector<mx::array>& state,
                              const weights::Slice& slice, int step, const mx::distributed::Group& group) {
  const double fresh = std::pow(step, -0.8);
  const auto renew = [&](mx::array& mean, const mx::array& x) {
    mean = mx::add(mx::multiply(mean, mx::array(static_cast<float>(1 - fresh))),
                   mx::multiply(x, mx::array(static_cast<float>(fresh))));
  };
  const mx::array squares = mx::add(mx::square(gradient), mx::array(1e-30F));
  const int axes = static_cast<int>(slice.shape.size());
  if (axes < 2) {
    renew(state[0], squares);
    return clipped(mx::multiply(gradient, mx::rsqrt(state[0])), slice, group);
  }
  mx::array &rows = state[0], &columns = state[1];
  renew(rows, mean_along(axes - 1, squares, slice, group));
  renew(columns, mean_along(axes - 2, squares, slice, group));
  // Rows and columns have the same mean: it is taken of those that every rank has all of.
  const mx::array mean = mx::mean(slice.axis == axes - 2 ? columns : rows, -1, /*keepdims=*/true);
  const mx::array of_row = mx::expand_dims(mx::rsqrt(mx::divide(rows, mean)), -1);
  const mx::array of_column = mx::expand_dims(mx::rsqrt(columns), -2);
  return clipped(mx::multiply(mx::multiply(gradient, of_row), of_column), slice, group);
}

}  // namespace tandem::train
