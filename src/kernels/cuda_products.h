// Products of few rows on a CUDA GPU, compiled by MLX when they first run.
//
// MLX's own kernels read 4 bit weights at a third of the memory's speed when there are few rows, and compile
// for minutes before their first product with gathered experts. These read them at the memory's speed:
// weights become 128 + q in bfloat16 (1024 + q in float16) by one operation for two of them, tensor cores
// multiply them with up to 8 rows at once, and sums are float32:
//   y = Σ over groups of scale · (Σ (128 + q) x) + (bias - 128 · scale) · Σ x.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <optional>

#include "kernels/gather_linear.h"
#include "kernels/matrix.h"

namespace tandem::kernels {

// x [T, in] · matrixᵀ → [T, out] in the scales' dtype; none where it is not for these kernels: no CUDA GPU,
// more than 32 rows, not 4 bit, scales of another dtype than float16 and bfloat16.
std::optional<mlx::core::array> linear_on_cuda(const mlx::core::array& x, const Matrix& matrix,
                                               mlx::core::Stream s);

// As gather_linear(), of at most 256 pairs of a row and an expert; experts that are 4 bit, float16 or
// bfloat16. The result of an id that is no expert's is 0. None where it is not for these kernels.
std::optional<mlx::core::array> gather_on_cuda(const mlx::core::array& x, const Experts& experts,
                                               const mlx::core::array& ids, mlx::core::Stream s);

}  // namespace tandem::kernels
