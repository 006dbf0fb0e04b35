// y = x · Wᵀ, the product of every projection.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <vector>

#include "kernels/matrix.h"
#include "kernels/products.h"

namespace tandem::kernels {

// x [..., in] times each of `matrices` [out, in] → [..., out] each; x is prepared once for all of them.
// On a CPU stream: x and the results are float32; quantised matrices must be packed. The order of each sum is
// fixed (panels.h), so a row depends neither on the rows computed with it nor on the number of threads. On a
// GPU stream: MLX's matmul or quantized_matmul in the dtype of the weight or its scales; there a row may
// depend on the rows computed with it. Gradients: by x; by the weight too where it is a dense array. By a
// packed matrix there is none. std::invalid_argument where x has not the inputs of each matrix.
std::vector<mlx::core::array> linear(const mlx::core::array& x, const std::vector<Matrix>& matrices,
                                     mlx::core::StreamOrDevice s = {});
mlx::core::array linear(const mlx::core::array& x, const Matrix& matrix, mlx::core::StreamOrDevice s = {});

// y [T, out] + scale · x [T, in] · Wᵀ, with the gradients of both, on a GPU stream in y's dtype.
mlx::core::array add_linear(const mlx::core::array& y, const mlx::core::array& x, const Matrix& matrix,
                            float scale, mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
