// attention() in MLX's operations: what GPU streams run, and the reference of the CPU's gradient.
#pragma once

#include "kernels/attention.h"

namespace tandem::kernels {

mlx::core::array attention_by_mlx(const mlx::core::array& q, const mlx::core::array& k,
                                  const mlx::core::array& v, const AttentionHeads& heads,
                                  const std::vector<AttentionRows>& sequences, mlx::core::Stream s);

}  // namespace tandem::kernels
