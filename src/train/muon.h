// Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the momentum of a matrix with all its
// singular values brought near 1.
#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>

#include "weights/source.h"

namespace tandem::train {

// The matrix, or each of a stack of them, with the singular values it has made about 1 (0.7 to 1.2), by five
// steps of Newton and Schulz.
mlx::core::array orthogonalised(const mlx::core::array& x);

// This rank's part of the step at learning rate 1, from its part of the gradient's momentum: as large as
// AdamW's (Liu et al. 2025, arXiv:2502.16982). `group` are the ranks with the other parts of the matrix.
mlx::core::array muon_direction(const mlx::core::array& momentum, const weights::Slice& slice,
                                const mlx::core::distributed::Group& group);

}  // namespace tandem::train
