// Pointwise operations in one kernel where MLX takes two.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <optional>

#include "kernels/pointwise.h"

namespace tandem::kernels {

// As add_rms_norm(), of arrays of one half precision dtype; the norm is that of the rounded sum. None where
// it is not for this kernel: no CUDA GPU, other dtypes, rows of more than 16384.
std::optional<SumAndNorm> add_rms_norm_on_cuda(const mlx::core::array& x, const mlx::core::array& added,
                                               const mlx::core::array& weight, float eps,
                                               mlx::core::Stream s);

// As rotate(), of rows whose numbers lie side by side. None where it is not for this kernel: no CUDA GPU,
// other dtypes than half precision, more than two kinds of rows.
std::optional<std::vector<mlx::core::array>> rotate_on_cuda(const std::vector<mlx::core::array>& rows,
                                                            const Angles& angles, int head_dim,
                                                            mlx::core::Stream s);

}  // namespace tandem::kernels
