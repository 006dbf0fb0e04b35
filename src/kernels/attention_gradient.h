// The gradients of attention() on a CPU.
#pragma once

#include <mlx/array.h>

#include <vector>

#include "kernels/attention.h"

namespace tandem::kernels {

// By q, k and v of y = attention(q, k, v) of sequences that stand alone, without an expansion; dy [T, Hq *
// Dv] float32. With values in the keys the third is zeros. Some queries at a time, whose scores are computed
// anew (Dao et al., arXiv:2205.14135), so that no matrix of scores is ever whole; their bits do not depend on
// the number of threads.
std::vector<mlx::core::array> attention_gradients(const mlx::core::array& q, const mlx::core::array& k,
                                                  const mlx::core::array& v, const mlx::core::array& y,
                                                  const mlx::core::array& dy, const AttentionHeads& heads,
                                                  const std::vector<AttentionRows>& sequences,
                                                  mlx::core::Stream s);

}  // namespace tandem::kernels
