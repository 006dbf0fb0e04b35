#include "parallel/collectives.h"

#include <mlx/distributed/ops.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>

namespace tandem::parallel {

namespace mx = mlx::core;

mx::array sum(const mx::array& x, const mx::distributed::Group& group) {
  return group.size() == 1 ? x : mx::distributed::all_sum(x, group);
}

mx::array max(const mx::array& x, const mx::distributed::Group& group) {
  return group.size() == 1 ? x : mx::distributed::all_max(x, group);
}

mx::array summed_gradient(const mx::array& x, const mx::distributed::Group& group) {
  if (group.size() == 1) return x;
  const auto same = mx::custom_vjp([](const auto& in) { return in; },
                                   [group](const auto&, const auto& cotangents, const auto&) {
                                     return std::vector<mx::array>{sum(cotangents.front(), group)};
                                   });
  return same({x}).front();
}

mx::array gather_columns(const mx::array& x, const std::vector<int>& parts,
                         const mx::distributed::Group& group) {
  if (group.size() == 1) return x;
  const int rows = x.shape(0), ranks = group.size();
  const int widest = *std::max_element(parts.begin(), parts.end());
  // all_gather takes equal shapes: pad to the widest part, cut the padding off again.
  const mx::array padded = mx::pad(x, {{0, 0}, {0, widest - x.shape(1)}});
  const mx::array all = mx::reshape(mx::distributed::all_gather(padded, group), {ranks, rows, widest});
  std::vector<mx::array> columns;
  for (int rank = 0; rank < ranks; ++rank) {
    columns.push_back(mx::squeeze(mx::slice(all, {rank, 0, 0}, {rank + 1, rows, parts[rank]}), 0));
  }
  return mx::concatenate(columns, 1);
}

mx::array InOrder::next(const mx::array& x) const {
  // On the collectives' stream: MLX's depends runs on that of x, which would wait for them.
  return *last_ ? mx::depends({mx::stop_gradient(x, stream_)}, {**last_}).front() : x;
}

mx::array InOrder::sum(const mx::array& x) {
  if (group_.size() == 1) return x;
  *last_ = mx::distributed::all_sum(next(x), group_, stream_);
  return **last_;
}

mx::array InOrder::gather(const mx::array& x, const mx::array& input) {
  // A number of the result stands for it, so that it is not held until the next one.
  const auto told = [](InOrder& order, const mx::array& y) {
    *order.last_ = mx::stop_gradient(mx::sum(mx::slice(y, {0}, {1})));
    return std::vector{y};
  };
  const auto forward = [order = *this, told, input](const auto& in) mutable {
    const mx::array ready = mx::depends({in.front()}, {input}).front();
    return told(order, mx::distributed::all_gather(order.next(ready), order.group_, order.stream_));
  };
  const auto backward = [order = *this, told](const auto&, const auto& cotangents, const auto&) mutable {
    const mx::array part = mx::contiguous(cotangents.front());
    return told(order, mx::distributed::sum_scatter(order.next(part), order.group_, order.stream_));
  };
  return mx::custom_vjp(forward, backward)({x}).front();
}

}  // namespace tandem::parallel
