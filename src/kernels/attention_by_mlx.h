// attention() in MLX's operations: what GPU streams run but for what a kernel of ours does.
#pragma once

#include "kernels/attention.h"

namespace tandem::kernels {

// Shapes as attention()'s, which has checked them; in the dtype of q, k and v; on a CPU stream too, as a
// reference. Of held sequences it fills KeyValues::keys and values, and counts their rows from the call on.
// Runs of sequences of one row by one kernel (cuda_attention.h) where it takes them. Gradients by q, k and v.
mlx::core::array attention_by_mlx(const mlx::core::array& q, const mlx::core::array& k,
                                  const mlx::core::array& v, const AttentionHeads& heads,
                                  const std::vector<AttentionRows>& sequences, mlx::core::Stream s);

}  // namespace tandem::kernels
