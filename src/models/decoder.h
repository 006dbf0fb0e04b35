// A model of any family at work, or the part of it that is one pipeline stage's: its layers one after the
// other, each an attention and a feed-forward.
#pragma once

#include <optional>
#include <variant>
#include <vector>

#include "models/attention.h"
#include "models/config.h"
#include "models/feed_forward.h"

namespace tandem::models {

struct DecoderLayer {
  mlx::core::array attention_norm;
  std::variant<GroupedAttention, LatentAttention> attention;
  mlx::core::array ffn_norm;
  std::variant<FeedForward, Mixture> ffn;
};

struct Decoder {
  ModelConfig config;
  std::optional<ShardedLinear> embedding;  // in the first stage
  int first_id = 0;                        // token id of the embedding's row 0
  std::vector<DecoderLayer> layers;
  std::optional<mlx::core::array> norm;  // this and the output matrix: in the last stage
  std::optional<ShardedLinear> output;
  Rope rope;
};

// Bytes of the weights that one token's step reads: all but the rows of a separate embedding and the experts
// that it does not have.
std::size_t step_bytes(const Decoder& model);

// In the first stage: ids [T], the sequences' one after the other → [T, hidden].
mlx::core::array embed(const Decoder& model, const mlx::core::array& ids, const Context& context);

// input [T, hidden], from embed() or the stage before → what the next stage takes, or, in the last, hidden
// states after the final norm: [T, hidden].
mlx::core::array forward(const Decoder& model, const mlx::core::array& input,
                         const std::vector<SequenceRows>& sequences, const Context& context);

// What the two halves of a layer make of x [T, hidden], as training goes through a model: with the gradients'
// sums over ranks.
mlx::core::array attention_output(const DecoderLayer& layer, const mlx::core::array& x, const Pass& pass,
                                  int index, const Context& context);
mlx::core::array ffn_output(const DecoderLayer& layer, const mlx::core::array& x, const Pass& pass,
                            const Context& context);

// In the last stage: hidden states [n, hidden] → logits [n, vocabulary].
mlx::core::array logits(const Decoder& model, const mlx::core::array& hidden, const Context& context);

}  // namespace tandem::models
