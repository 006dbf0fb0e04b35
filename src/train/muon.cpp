#include "train/muon.h"

#include <mlx/ops.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/linear.h"
#include "train/parts.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

mx::array times_transposed(const mx::array& x, const mx::array& y) {
  return kernels::linear(x, kernels::Matrix{y, std::nullopt, nullptr});
}

mx::array each_orthogonalised(const mx::array& stack) {
  std::vector<mx::array> found;
  for (const auto& one : mx::split(stack, stack.shape(0)))
    found.push_back(mx::expand_dims(orthogonalised(mx::squeeze(one, 0)), 0));
  return mx::concatenate(found, 0);
}

}  // namespace

mx::array orthogonalised(const mx::array& x) {
  if (x.ndim() > 2) return each_orthogonalised(x);
  constexpr int steps = 5;
  const mx::array a(3.4445F), b(-4.7750F), c(2.0315F);
  const bool tall = x.shape(0) > x.shape(1);  // products of the smaller side are smaller
  mx::array y = tall ? mx::transpose(x) : x;
  const mx::array norm = mx::sqrt(mx::sum(mx::square(y)));
  y = mx::divide(y, mx::maximum(norm, mx::array(1e-7F)));
  for (int i = 0; i < steps; ++i) {
    const mx::array squared = times_transposed(y, y);  // symmetric
    const mx::array fourth = times_transposed(squared, squared);
    const mx::array factor = mx::add(mx::multiply(b, squared), mx::multiply(c, fourth));
    y = mx::add(mx::multiply(a, y), times_transposed(factor, mx::transpose(y)));
  }
  return tall ? mx::transpose(y) : y;
}

mx::array muon_direction(const mx::array& momentum, const weights::Slice& slice,
                         const mx::distributed::Group& group) {
  const auto& shape = slice.shape;
  const int rows = shape[shape.size() - 2], columns = shape.back();
  const mx::array scale(0.2F * std::sqrt(static_cast<float>(std::max(rows, columns))));
  // A rank's part of a stack may be whole matrices.
  const bool cut = slice.axis >= static_cast<int>(shape.size()) - 2;
  if (!cut) return mx::multiply(scale, orthogonalised(momentum));
  return mx::multiply(scale, weights::sliced(orthogonalised(whole_of(slice, momentum, group)), slice));
}

}  // namespace tandem::train
