// The log of the sum of exponentials of scores, and a score of each row: what a cross-entropy is made of.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

namespace tandem::kernels {

struct RowScores {
  mlx::core::array log_sum;  // [T] float32: log Σ e^score of each row
  mlx::core::array chosen;   // [T] float32: the row's score at its column; 0 where that is none
};
// scores [T, n], columns [T] int32: below 0 or from n on there is none. Gradients by the scores, on a CPU
// stream in one pass over them.
RowScores log_sum_exp(const mlx::core::array& scores, const mlx::core::array& columns,
                      mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
