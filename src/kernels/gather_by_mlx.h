// gather_linear() and linear_by_head() in MLX's operations, for a GPU.
#pragma once

#include "kernels/gather_linear.h"

namespace tandem::kernels {

mlx::core::array gather_by_mlx(const mlx::core::array& x, const Experts& experts, const mlx::core::array& ids,
                               mlx::core::Stream s);
mlx::core::array by_head_by_mlx(const mlx::core::array& x, const Experts& heads, mlx::core::Stream s);

}  // namespace tandem::kernels
