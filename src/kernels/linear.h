// y = x · Wᵀ, the product of every projection.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

namespace tandem::kernels {

// x [..., in], weight [out, in] in float32, float16 or bfloat16 → [..., out].
// On a CPU stream: x and the result are float32 and the weight is read as it is packed; each element of the
// result is summed in an order that depends on `in` alone, so a row does not depend on the rows computed with
// it. On a GPU stream: MLX's matmul in the weight's dtype.
mlx::core::array linear(const mlx::core::array& x, const mlx::core::array& weight,
                        mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
