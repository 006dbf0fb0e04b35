// The router of a mixture of experts in one kernel on a CUDA GPU, where MLX's operations are ten and more.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <optional>

#include "kernels/routing.h"

namespace tandem::kernels {

// As route(). None where it is not for this kernel: no CUDA GPU, logits of another dtype than float32, more
// than 1024 experts, 32 groups or 32 chosen. It has no gradient.
std::optional<Routes> route_on_cuda(const mlx::core::array& logits,
                                    const std::optional<mlx::core::array>& bias, const Routing& routing,
                                    mlx::core::Stream s);

// As weighted_sum(), of x in half precision.
std::optional<mlx::core::array> weighted_sum_on_cuda(const mlx::core::array& x,
                                                     const mlx::core::array& weights, mlx::core::Stream s);

}  // namespace tandem::kernels
