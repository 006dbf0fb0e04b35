// The two kinds of feed-forward that families have, each this rank's columns or experts.
#pragma once

#include <optional>

#include "kernels/gather_linear.h"
#include "kernels/routing.h"
#include "models/layers.h"

namespace tandem::models {

// SwiGLU (Shazeer 2020, arXiv:2002.05202).
struct FeedForward {
  ShardedLinear gate, up, down;
};

// Mixture of experts (DeepSeekMoE, Dai et al. 2024, arXiv:2401.06066), with those that every token has as one
// feed-forward.
struct Mixture {
  kernels::Matrix router;  // [experts, hidden] float32
  std::optional<mlx::core::array> router_bias;
  kernels::Routing routing;
  kernels::Experts gate, up, down;
  std::optional<FeedForward> shared;
};

// x [T, hidden], normed → this rank's part of the output [T, hidden].
mlx::core::array feed_forward(const FeedForward& w, const mlx::core::array& x);
mlx::core::array feed_forward(const Mixture& w, const mlx::core::array& x);

// Bytes of the weights that one token reads: of the experts here, as many as it has on average.
std::size_t step_bytes(const FeedForward& w);
std::size_t step_bytes(const Mixture& w);

}  // namespace tandem::models
