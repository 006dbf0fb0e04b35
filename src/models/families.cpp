#include "models/families.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/loading.h"

namespace tandem::models {
namespace {

using parallel::Dim;
using parallel::Reduce;

// What every family has around attention and feed-forward.
const std::vector<TableRow>& common_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.embed_tokens.weight",                   {Dim::vocabulary, Dim::hidden}, 0, Reduce::sum, {}}},
    {{"model.layers.*.input_layernorm.weight",       {Dim::hidden},                 -1, Reduce::none, {}}},
    {{"model.layers.*.post_attention_layernorm.weight", {Dim::hidden},              -1, Reduce::none, {}}},
    {{"model.norm.weight",                           {Dim::hidden},                 -1, Reduce::none, {}}},
    {{"lm_head.weight",                              {Dim::vocabulary, Dim::hidden}, 0, Reduce::gather, {}}, &ModelConfig::separate_output},
      // clang-format on
  };
  return table;
}

// Of the layers that are dense.
const std::vector<TableRow>& feed_forward_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.layers.*.mlp.gate_proj.weight",         {Dim::ffn, Dim::hidden},        0, Reduce::none, {}}},
    {{"model.layers.*.mlp.up_proj.weight",           {Dim::ffn, Dim::hidden},        0, Reduce::none, {}}},
    {{"model.layers.*.mlp.down_proj.weight",         {Dim::hidden, Dim::ffn},        1, Reduce::sum, {}}},
    {{"model.layers.*.mlp.gate_proj.bias",           {Dim::ffn},                     0, Reduce::none, {}}, &ModelConfig::mlp_bias},
    {{"model.layers.*.mlp.up_proj.bias",             {Dim::ffn},                     0, Reduce::none, {}}, &ModelConfig::mlp_bias},
    {{"model.layers.*.mlp.down_proj.bias",           {Dim::hidden},                 -1, Reduce::none, {}}, &ModelConfig::mlp_bias},
      // clang-format on
  };
  return table;
}

bool is_deepseek(const ModelConfig& config) { return config.sizes.latent > 0; }

DecoderLayer take_layer(const ModelConfig& config, const parallel::Shard& shard,
                        const weights::ShardedWeights& weights, int layer) {
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const auto attention = [&]() -> decltype(DecoderLayer::attention) {
    if (is_deepseek(config)) return take_latent_attention(config, weights, layer);
    return take_grouped_attention(config, shard, weights, layer);
  };
  const auto ffn = [&]() -> decltype(DecoderLayer::ffn) {
    const auto& sparse = config.expert_layers;
    if (std::find(sparse.begin(), sparse.end(), layer) != sparse.end())
      return take_mixture(config, shard, weights, layer);
    return take_feed_forward(weights, prefix + "mlp.");
  };
  return {take_vector(weights, prefix + "input_layernorm.weight"), attention(),
          take_vector(weights, prefix + "post_attention_layernorm.weight"), ffn()};
}

}  // namespace

std::vector<weights::ShardRule> rows_of(const std::vector<TableRow>& table, const ModelConfig& config) {
  std::vector<weights::ShardRule> rules;
  for (const auto& row : table) {
    if (!row.when || config.*row.when) rules.push_back(row.rule);
  }
  return rules;
}

FeedForward take_feed_forward(const weights::ShardedWeights& weights, const std::string& prefix) {
  const auto take = [&](const char* name) { return take_linear(weights, prefix + name); };
  FeedForward w{take("gate_proj"), take("up_proj"), take("down_proj")};
  join({&w.gate, &w.up});
  return w;
}

std::vector<weights::ShardRule> shard_rules(const ModelConfig& config, const weights::Source& source) {
  auto rules = rows_of(common_table(), config);
  const auto add = [&](const std::vector<weights::ShardRule>& more) {
    rules.insert(rules.end(), more.begin(), more.end());
  };
  add(is_deepseek(config) ? deepseek_shard_rules(config, source) : llama_shard_rules(config));
  if (!config.dense_layers.empty()) {
    auto dense = rows_of(feed_forward_table(), config);
    for (auto& rule : dense) rule.layers = config.dense_layers;
    add(dense);
  }
  add(mixture_shard_rules(config, source));
  return rules;
}

Decoder make_decoder(const ModelConfig& config, const parallel::Shard& shard,
                     const weights::ShardedWeights& weights) {
  const int rotated = is_deepseek(config) ? config.sizes.rope : config.sizes.head_dim;
  Decoder model{.config = config,
                .embedding = take_linear(weights, "model.embed_tokens"),
                .first_id = shard.vocabulary.begin,
                .layers = {},
                .norm = take_vector(weights, "model.norm.weight"),
                .output = {},
                .rope = make_rope(config.rope, rotated, config.rotates_pairs)};
  if (config.tied_embeddings) {
    model.output = model.embedding;
    model.output.reduce = parallel::Reduce::gather;
  } else {
    model.output = take_linear(weights, "lm_head");
  }
  model.output.parts = shard.vocabulary_sizes;
  for (int layer = 0; layer < config.layers; ++layer)
    model.layers.push_back(take_layer(config, shard, weights, layer));
  return model;
}

}  // namespace tandem::models
