// The loss by which DeepSeek-V3 keeps the experts of each sequence balanced.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <vector>

#include "kernels/routing.h"

namespace tandem::kernels {

// logits [T, experts], as they are, with the gradient besides of Σ over sequences of weight · Σ over experts
// of f · P (arXiv:2412.19437, equations 17 to 20): P is a sequence's mean of the expert's share in its
// tokens' scores, f how often it is among the `chosen` best ones, by experts / chosen. The sequences' rows,
// `tokens` of each, stand one after the other.
mlx::core::array with_sequence_balance(const mlx::core::array& logits, const Routing& routing,
                                       const std::vector<int>& tokens, const std::vector<float>& weights,
                                       mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
