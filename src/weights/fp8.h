// DeepSeek's FP8 weights (DeepSeek-V3, arXiv:2412.19437, section 3.3): E4M3 numbers (OCP 8-bit floating point
// specification 1.0) with a float32 scale for each block of rows and columns.
#pragma once

#include <mlx/array.h>

namespace tandem::weights {

// values [out, in] uint8, a part of a matrix that begins at row `first_row` and column `first_column`; scales
// [ceil(rows / block), ceil(columns / block)] of the whole matrix → [out, in] in `dtype`, value times scale.
mlx::core::array dequantise_fp8(const mlx::core::array& values, const mlx::core::array& scales, int block,
                                int first_row, int first_column, mlx::core::Dtype dtype);

// 0 ± 448; NaN for 0x7f and 0xff.
float fp8_to_float(unsigned char bits);

}  // namespace tandem::weights
