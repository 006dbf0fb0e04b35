// The gradients of pointwise.h's operations on a CPU.
#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

namespace tandem::kernels {

struct NormGradients {
  mlx::core::array by_x;                      // as x
  std::optional<mlx::core::array> by_weight;  // [n], where it is wanted
};
// Of y = rms_norm(x, weight), times dy of x's shape. The sums over rows are those of fixed parts, so that the
// bits do not depend on the number of threads.
NormGradients rms_norm_gradients(const mlx::core::array& x, const mlx::core::array& weight,
                                 const mlx::core::array& dy, float eps, bool by_weight, mlx::core::Stream s);

// Of y = silu_multiply(gate, up) by both, times dy.
std::vector<mlx::core::array> silu_multiply_gradients(const mlx::core::array& gate,
                                                      const mlx::core::array& up, const mlx::core::array& dy,
                                                      mlx::core::Stream s);

}  // namespace tandem::kernels
