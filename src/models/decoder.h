// A model of any family at work: its layers one after the other, each an attention and a feed-forward.
#pragma once

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
  ShardedLinear embedding;
  int first_id = 0;  // token id of the embedding's row 0
  std::vector<DecoderLayer> layers;
  mlx::core::array norm;
  ShardedLinear output;
  Rope rope;
};

// Bytes of the weights that one token's step reads: all but the rows of a separate embedding and the experts
// that it does not have.
std::size_t step_bytes(const Decoder& model);

// ids [T], the sequences' one after the other → hidden states [T, hidden] after the final norm.
mlx::core::array forward(const Decoder& model, const mlx::core::array& ids,
                         const std::vector<SequenceRows>& sequences, const Context& context);

// Hidden states [n, hidden] → logits [n, vocabulary].
mlx::core::array logits(const Decoder& model, const mlx::core::array& hidden, const Context& context);

}  // namespace tandem::models
