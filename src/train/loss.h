// The forward pass of training and its loss.
#pragma once

#include <optional>
#include <vector>

#include "models/decoder.h"
#include "train/trainable.h"

namespace tandem::train {

// Token ids of one text. ids[t] is predicted from those before it, and counts, for t >= loss_from.
struct Sequence {
  std::vector<int> ids;
  int loss_from = 1;

  // Tokens that the next one is predicted from.
  int rows() const { return ids.empty() ? 0 : static_cast<int>(ids.size()) - 1; }
};

// How many tokens count.
int scored_tokens(const std::vector<Sequence>& sequences);

// What a stage makes of the sequences: from `input` [T, hidden], what the stage before makes of them (none:
// it is the first), that for the next, or in the last their summed_nll().
mlx::core::array stage_output(const TrainedModel& model, const std::vector<Sequence>& sequences,
                              const std::optional<mlx::core::array>& input, const models::Context& context,
                              int recomputed_every);
// The rows of its input and output.
int input_rows(const std::vector<Sequence>& sequences);

// The sum of the negative log-likelihoods (nats) of the tokens that count, a float32 scalar, the same on
// every rank of the stage. For them alone the output's product and its softmax are computed, and again for
// the gradient, some tokens at a time, so that the logits of all are never in memory. Of each
// `recomputed_every`-th layer (0: of none) only its input is kept for the gradient (Chen et al. 2016,
// arXiv:1604.06174).
mlx::core::array summed_nll(const TrainedModel& model, const std::vector<Sequence>& sequences,
                            const models::Context& context, int recomputed_every);

}  // namespace tandem::train
