// The two kinds of feed-forward that families have, each this rank's columns or experts.
#pragma once

#include <optional>
#include <string>

#include "kernels/gather_linear.h"
#include "kernels/routing.h"
#include "models/layers.h"
#include "weights/source.h"

namespace tandem::models {

// SwiGLU (Shazeer 2020, arXiv:2002.05202).
struct FeedForward {
  ShardedLinear gate, up, down;
};

// Adapters of experts, one for each (mlx-lm's LoRASwitchLinear), as Adapter has them of a matrix.
struct ExpertsAdapter {
  kernels::Experts down;  // [E, rank, in]
  kernels::Experts up;    // [E, out, rank]
  float scale = 1;
};

// One of a mixture's matrices, of each expert here.
struct ShardedExperts {
  kernels::Experts weight;
  // Where this part lies in the stack of all experts' [E, out, in], and what that is called in
  // mlx-community's files, without ".weight": "model.layers.3.mlp.switch_mlp.gate_proj".
  weights::Slice place = {};
  std::optional<ExpertsAdapter> adapter = {};
};

// Mixture of experts (DeepSeekMoE, Dai et al. 2024, arXiv:2401.06066), with those that every token has as one
// feed-forward.
struct Mixture {
  kernels::Matrix router;  // [experts, hidden] float32
  std::optional<mlx::core::array> router_bias;
  kernels::Routing routing;
  ShardedExperts gate, up, down;
  std::optional<FeedForward> shared;
};

// x [T, hidden], normed → this rank's part of the output [T, hidden].
mlx::core::array feed_forward(const FeedForward& w, const mlx::core::array& x);
// With balance_weights, the sequences' balance in the loss (attention.h: Pass).
mlx::core::array feed_forward(const Mixture& w, const mlx::core::array& x,
                              const std::vector<SequenceRows>& sequences = {},
                              const std::vector<float>& balance_weights = {});

// Bytes of the weights that one token reads: of the experts here, as many as it has on average.
std::size_t step_bytes(const FeedForward& w);
std::size_t step_bytes(const Mixture& w);

}  // namespace tandem::models
