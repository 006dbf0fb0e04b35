#include "kernels/gather_by_mlx.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>

#include "kernels/cpu_primitive.h"
#include "kernels/cuda_kernel.h"
#include "kernels/cuda_products.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// rows [..., 1, in], of which each takes the expert of its id. MLX 0.32.4 is not told of sorted ids, with
// which it gives wrong rows on CUDA, nor given more rows than CUDA allows blocks.
mx::array gather_rows_by_mlx(const mx::array& rows, const Experts& e, const mx::array& ids, mx::Stream s) {
  constexpr int most_rows = 65535;
  if (const int count = rows.shape(0); count > most_rows) {
    std::vector<mx::array> parts;
    for (int first = 0; first < count; first += most_rows) {
      const int end = std::min(count, first + most_rows);
      parts.push_back(gather_rows_by_mlx(mx::slice(rows, {first, 0, 0}, {end, 1, rows.shape(2)}, s), e,
                                         mx::slice(ids, {first}, {end}, s), s));
    }
    return mx::concatenate(parts, 0, s);
  }
  if (!e.affine) {
    return mx::gather_mm(mx::astype(rows, e.weight->dtype(), s), mx::swapaxes(*e.weight, 1, 2, s),
                         std::nullopt, ids, false, s);
  }
  const Affine& a = *e.affine;
  return mx::gather_qmm(mx::astype(rows, a.scales.dtype(), s), *e.weight, a.scales, a.biases, std::nullopt,
                        ids, true, a.group, a.bits, "affine", std::nullopt, false, s);
}

// x [T, in] or [T, k, in]. Where an expert has several rows they are brought side by side, so that caches
// serve them.
mx::array sorted_by_mlx(const mx::array& x, const Experts& e, const mx::array& ids, mx::Stream s) {
  constexpr int pairs_worth_sorting = 64;
  const int pairs = static_cast<int>(ids.size()), choices = ids.shape(1);
  if (pairs < pairs_worth_sorting) {
    const mx::array rows =
        x.ndim() == 2 ? mx::expand_dims(x, std::vector<int>{1, 2}, s) : mx::expand_dims(x, 2, s);
    return mx::squeeze(gather_rows_by_mlx(rows, e, ids, s), 2, s);
  }
  const mx::array flat = mx::reshape(ids, {pairs}, s), order = mx::argsort(flat, s);
  const mx::array rows = x.ndim() == 2 ? mx::take(x, mx::floor_divide(order, mx::array(choices), s), 0, s)
                                       : mx::take(mx::reshape(x, {pairs, x.shape(2)}, s), order, 0, s);
  const mx::array y =
      mx::squeeze(gather_rows_by_mlx(mx::expand_dims(rows, 1, s), e, mx::take(flat, order, 0, s), s), 1, s);
  const mx::array back = mx::take(y, mx::argsort(order, s), 0, s);
  return mx::reshape(back, {ids.shape(0), choices, y.shape(1)}, s);
}

// By the weight [E, out, in], as gather_linear() has it for a GPU: an expert after the other, of all rows
// those that are not its own being 0.
mx::array outer_by_mlx(const mx::array& dy, const mx::array& x, const mx::array& ids, int experts,
                       mx::Stream s) {
  const int pairs = static_cast<int>(ids.size()), choices = ids.shape(1);
  const mx::array left = mx::reshape(dy, {pairs, dy.shape(2)}, s);
  const mx::array right =
      x.ndim() == 2 ? mx::repeat(x, choices, 0, s) : mx::reshape(x, {pairs, x.shape(2)}, s);
  const mx::array flat = mx::reshape(ids, {pairs, 1}, s);
  std::vector<mx::array> found;
  for (int e = 0; e < experts; ++e) {
    const mx::array own = mx::where(mx::equal(flat, mx::array(e), s), left, mx::array(0, left.dtype()), s);
    found.push_back(mx::matmul(mx::transpose(own, s), right, s));
  }
  return mx::stack(found, 0, s);
}

// MLX's own gradient of gather_mm ends in an error on CUDA in 0.32.4, and takes each row's outer product.
mx::array gather_with_gradient(const mx::array& x, const mx::array& weight, const mx::array& ids,
                               mx::Stream s) {
  const auto forward = [ids, s](const std::vector<mx::array>& in) {
    return std::vector{sorted_by_mlx(in[0], {in[1], std::nullopt, {}}, ids, s)};
  };
  const auto backward = [ids, s](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents,
                                 const std::vector<mx::array>&) {
    const mx::array &x = in[0], &weight = in[1];
    const mx::array dy = mx::astype(cotangents[0], weight.dtype(), s);
    const mx::array by_pair = sorted_by_mlx(dy, {mx::swapaxes(weight, 1, 2, s), std::nullopt, {}}, ids, s);
    const mx::array by_x = x.ndim() == 2 ? mx::sum(by_pair, 1, false, s) : by_pair;
    const mx::array by_weight = outer_by_mlx(dy, mx::astype(x, weight.dtype(), s), ids, weight.shape(0), s);
    return std::vector{mx::astype(by_x, x.dtype(), s), by_weight};
  };
  return mx::custom_vjp(forward, backward)({x, weight}).front();
}

}  // namespace

Experts dequantised(const Experts& e, mx::Stream s) {
  const Affine& a = *e.affine;
  Experts dense;
  dense.weight =
      mx::dequantize(*e.weight, a.scales, a.biases, a.group, a.bits, "affine", std::nullopt, std::nullopt, s);
  return dense;
}

mx::array gather_by_mlx(const mx::array& x, const Experts& e, const mx::array& ids, mx::Stream s) {
  if (is_cuda(s)) {
    if (auto y = gather_on_cuda(x, e, ids, s)) return *y;
    if (e.affine) return gather_by_mlx(x, dequantised(e, s), ids, s);
    if (has_gradient({x, *e.weight})) return gather_with_gradient(x, *e.weight, ids, s);
  }
  return sorted_by_mlx(x, e, ids, s);
}

mx::array by_head_by_mlx(const mx::array& x, const Experts& given, mx::Stream s) {
  const Experts heads = given.affine && is_cuda(s) ? dequantised(given, s) : given;
  const int rows = x.shape(0), count = heads.count();
  const mx::array by_head =
      mx::swapaxes(mx::reshape(x, {rows, count, heads.in()}, s), 0, 1, s);  // [H, T, in]
  const auto& a = heads.affine;
  const mx::array y =
      a ? mx::quantized_matmul(mx::astype(by_head, a->scales.dtype(), s), *heads.weight, a->scales, a->biases,
                               true, a->group, a->bits, "affine", s)
        : mx::matmul(mx::astype(by_head, heads.weight->dtype(), s), mx::swapaxes(*heads.weight, 1, 2, s), s);
  return mx::reshape(mx::swapaxes(y, 0, 1, s), {rows, count * heads.out()}, s);
}

}  // namespace tandem::kernels
