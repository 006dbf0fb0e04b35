// The reductions a split model needs, as graph operations. With one rank each is the identity.
#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>

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

}  // namespace tandem::parallel
