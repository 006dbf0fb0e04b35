// Element-wise reductions over the ranks' buffers, in rank order.
#pragma once

#include <mlx/dtype.h>

#include <cstddef>
#include <span>

namespace tandem::parallel {

enum class ReduceOp { sum, max, min };

// out[i] = parts[0][i] op parts[1][i] op …, of `count` elements; `out` may be one of the parts. float16 and
// bfloat16 are summed in float32 and rounded once; integers wrap around; a sum of bools is their or; max and
// min of a NaN are NaN. std::invalid_argument for complex64.
void reduce(ReduceOp op, mlx::core::Dtype dtype, std::span<const char* const> parts, char* out,
            std::size_t count);

// The sum of bfloat16 parts, in rank order, as float32; `out` overlaps none of them.
void sum_bfloat16(std::span<const char* const> parts, float* out, std::size_t count);

// To bfloat16, to nearest, ties to even, and back. `to` and `from` do not overlap.
void narrow_to_bfloat16(const float* from, char* to, std::size_t count);
void widen_bfloat16(const char* from, float* to, std::size_t count);

}  // namespace tandem::parallel
