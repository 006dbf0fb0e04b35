// The reductions a split model needs, as graph operations. With one rank each is the identity.
#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>
#include <mlx/utils.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace tandem::parallel {

// The sum over ranks, same shape.
mlx::core::array sum(const mlx::core::array& x, const mlx::core::distributed::Group& group);

// The largest over ranks, same shape. It has no gradient.
mlx::core::array max(const mlx::core::array& x, const mlx::core::distributed::Group& group);

// x, whose gradient is the sum of the ranks' gradients: what every rank holds and computes a part with. (The
// gradient of sum() is the identity; together they are Megatron-LM's f and g, arXiv:1909.08053, section 3.)
mlx::core::array summed_gradient(const mlx::core::array& x, const mlx::core::distributed::Group& group);

// x [T, parts[rank]] of each rank side by side: [T, sum of parts]. Parts may differ.
mlx::core::array gather_columns(const mlx::core::array& x, const std::vector<int>& parts,
                                const mlx::core::distributed::Group& group);

// Collectives of one group in the order in which they are asked for, on every rank, though the graphs of
// ranks with other sequences are evaluated in other orders. Copies share that order.
class InOrder {
 public:
  explicit InOrder(mlx::core::distributed::Group group, mlx::core::StreamOrDevice s = {})
      : group_(std::move(group)), stream_(s) {}

  mlx::core::array sum(const mlx::core::array& x);
  // x [n] of each rank one after the other, [ranks * n], once `input` is there. The gradient of x is its part
  // of the sum over ranks.
  mlx::core::array gather(const mlx::core::array& x, const mlx::core::array& input);

 private:
  mlx::core::array next(const mlx::core::array& x) const;

  mlx::core::distributed::Group group_;
  mlx::core::StreamOrDevice stream_;
  std::shared_ptr<std::optional<mlx::core::array>> last_ =
      std::make_shared<std::optional<mlx::core::array>>();
};

}  // namespace tandem::parallel
