// The llama family: llama (DeepSeek-LLM included), mistral, qwen2, qwen3. They differ in biases, norms of
// queries and keys, windows and tied embeddings alone, which the configuration tells.
#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "models/config.h"
#include "models/kv_cache.h"
#include "models/layers.h"
#include "weights/shard_table.h"

namespace tandem::models {

struct LlamaLayer {
  mlx::core::array attention_norm;
  ShardedLinear query, key, value, attention_output;
  std::optional<mlx::core::array> query_norm, key_norm;
  mlx::core::array ffn_norm;
  ShardedLinear gate, up, down;
};

struct Llama {
  ModelConfig config;
  ShardedLinear embedding;
  int first_id = 0;              // token id of the embedding's row 0
  std::vector<int> kv_of_query;  // which local key/value head each local query head reads
  std::vector<LlamaLayer> layers;
  mlx::core::array norm;
  ShardedLinear output;
  Rope rope;
};

// The family's shard table, without the rows that `config` does not have.
std::vector<weights::ShardRule> llama_shard_rules(const ModelConfig& config);

// Takes the weights over, packed for the CPU where that computes.
Llama make_llama(const ModelConfig& config, const parallel::Shard& shard,
                 const weights::ShardedWeights& weights);

// Bytes of the weights that one token's step reads: all but the rows of a separate embedding.
std::size_t step_bytes(const Llama& model);

// ids [T], the sequences' one after the other → hidden states [T, hidden] after the final norm.
mlx::core::array forward(const Llama& model, const mlx::core::array& ids,
                         const std::vector<SequenceRows>& sequences, const Context& context);

// Hidden states [n, hidden] → logits [n, vocabulary].
mlx::core::array logits(const Llama& model, const mlx::core::array& hidden, const Context& context);

}  // namespace tandem::models
