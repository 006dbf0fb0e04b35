// The router of a mixture of experts: which experts a token has, and how much of each.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <optional>

namespace tandem::kernels {

// DeepSeek-V2 (arXiv:2405.04434, section 2.1.2), V3 (arXiv:2412.19437, section 2.1.2), Qwen3.
struct Routing {
  enum class Score { softmax, sigmoid };
  enum class GroupScore { best, best_two };  // of a group, its highest score, or the sum of its two highest
  int experts = 0;
  int chosen = 0;  // of them, for a token
  int groups = 1;
  int chosen_groups = 1;  // that a token's experts may come from
  Score score = Score::softmax;
  GroupScore group_score = GroupScore::best;
  bool normalised = false;  // a token's weights add up to `scale`
  float scale = 1;          // multiplies the weights
  // The experts that are held here, [first_held, end_held).
  int first_held = 0, end_held = 0;
};

struct Routes {
  mlx::core::array ids;      // [T, chosen] int32, counted from first_held
  mlx::core::array weights;  // [T, chosen] float32
};

// Added to the sum that weights, or shares of scores, are divided by.
inline constexpr float least_sum = 1e-20F;

// Of every expert, by logits [T, experts]: [T, experts] float32.
mlx::core::array router_scores(const mlx::core::array& logits, const Routing& routing,
                               mlx::core::StreamOrDevice s = {});

// logits [T, experts]; bias [experts] is added to the scores that choose, not to the weights (V3's
// e_score_correction_bias). The best score comes first, of equal ones the lower expert. Of an expert that is
// not held, on a CPU stream the id is -1; on a GPU stream id and weight are 0. No host
// synchronisation. Gradient of the weights by the logits; in place of one by the bias, how many rows chose
// each expert that is held, by which V3 balances them (arXiv:2412.19437, section 2.1.2).
Routes route(const mlx::core::array& logits, const std::optional<mlx::core::array>& bias,
             const Routing& routing, mlx::core::StreamOrDevice s = {});

// Σ over k of weights [T, k] · x [T, k, n]: [T, n], in x's dtype.
mlx::core::array weighted_sum(const mlx::core::array& x, const mlx::core::array& weights,
                              mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
