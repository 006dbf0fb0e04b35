// The families that a Decoder runs: each a file with its shard table, which says how its tensors are called,
// shaped and cut, and what takes them over.
#pragma once

#include <string>
#include <vector>

#include "models/decoder.h"
#include "parallel/plan.h"
#include "weights/shard_table.h"
#include "weights/source.h"

namespace tandem::models {

// One row of a family's table, with when it is there.
struct TableRow {
  weights::ShardRule rule;
  bool ModelConfig::*when = nullptr;  // nullptr: always
};
std::vector<weights::ShardRule> rows_of(const std::vector<TableRow>& table, const ModelConfig& config);

// The tensors of `config` as they are called in `source`: those of every layer, and of the rest what the
// stage with `layers` holds.
std::vector<weights::ShardRule> shard_rules(const ModelConfig& config, const weights::Source& source,
                                            const parallel::Range& layers);

// The linear products of all layers, as adapters are named: "self_attn.q_proj", … (visit.h, for_each_linear).
std::vector<std::string> product_keys(const ModelConfig& config, const weights::Source& source);

// Takes the weights of the stage with `layers` over.
Decoder make_decoder(const ModelConfig& config, const parallel::Shard& shard,
                     const weights::ShardedWeights& weights, const parallel::Range& layers);

// The same in parts: without weights, one layer, and the norm and the matrix of the output.
Decoder without_weights(const ModelConfig& config, const parallel::Shard& shard);
DecoderLayer take_layer(const ModelConfig& config, const parallel::Shard& shard,
                        const weights::ShardedWeights& weights, int layer);
void take_output(const ModelConfig& config, const parallel::Shard& shard,
                 const weights::ShardedWeights& weights, Decoder& model);

// How many numbers each layer's tensors have, [config.layers].
std::vector<double> layer_sizes(const ModelConfig& config);

// llama.cpp: llama (DeepSeek-LLM included), mistral, qwen2, qwen3, which differ in biases, norms of queries
// and keys, windows and tied embeddings alone; and what qwen3_moe shares with them.
std::vector<weights::ShardRule> llama_shard_rules(const ModelConfig& config);
GroupedAttention take_grouped_attention(const ModelConfig& config, const parallel::Shard& shard,
                                        const weights::ShardedWeights& weights, int layer);

// deepseek.cpp: deepseek_v2 and deepseek_v3 (R1 and V3.1 included), as Hugging Face's and mlx-community's
// files have them.
std::vector<weights::ShardRule> deepseek_shard_rules(const ModelConfig& config,
                                                     const weights::Source& source);
// kv_b_proj [H * (nope + value), latent] by head: keys [H, latent, nope], turned over, values [H, value,
// latent].
mlx::core::array keys_by_head(const mlx::core::array& up, int nope, int value);
mlx::core::array values_by_head(const mlx::core::array& up, int nope, int value);
LatentAttention take_latent_attention(const ModelConfig& config, const weights::ShardedWeights& weights,
                                      int layer);

// PREFIX then gate_proj, up_proj, down_proj.
FeedForward take_feed_forward(const weights::ShardedWeights& weights, const std::string& prefix);

// mixture.cpp: the experts of every family that has some.
std::vector<weights::ShardRule> mixture_shard_rules(const ModelConfig& config, const weights::Source& source);
Mixture take_mixture(const ModelConfig& config, const parallel::Shard& shard,
                     const weights::ShardedWeights& weights, int layer);

}  // namespace tandem::models
