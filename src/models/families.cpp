#include "models/families.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "models/loading.h"

namespace tandem::models {
namespace {

using parallel::Dim;
using parallel::Reduce;

// What every family has before its layers, …
const std::vector<TableRow>& embedding_table() {
  static const std::vector<TableRow> table{
      {{"model.embed_tokens.weight", {Dim::vocabulary, Dim::hidden}, 0, Reduce::sum, {}}}};
  return table;
}

// … around attention and feed-forward in each, …
const std::vector<TableRow>& norm_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.layers.*.input_layernorm.weight",       {Dim::hidden},                 -1, Reduce::none, {}}},
    {{"model.layers.*.post_attention_layernorm.weight", {Dim::hidden},              -1, Reduce::none, {}}},
      // clang-format on
  };
  return table;
}

// … and after them.
const std::vector<TableRow>& output_table() {
  static const std::vector<TableRow> table{
      // clang-format off
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

// No file at all: tensors are called as in Hugging Face's.
class NoSource : public weights::Source {
 public:
  bool has(const std::string&) const override { return false; }
  std::uint64_t bytes(const weights::Slice&) const override { return 0; }
  mlx::core::array read(const weights::Slice& slice, const weights::OnBytes&) const override {
    throw std::logic_error("nothing to read " + slice.name + " from");
  }
};

bool is_deepseek(const ModelConfig& config) { return config.sizes.latent > 0; }

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
  join(weights, {&w.gate, &w.up});
  return w;
}

std::vector<weights::ShardRule> shard_rules(const ModelConfig& config, const weights::Source& source,
                                            const parallel::Range& layers) {
  auto rules = rows_of(norm_table(), config);
  const auto add = [&](const std::vector<weights::ShardRule>& more) {
    rules.insert(rules.end(), more.begin(), more.end());
  };
  const bool last = layers.end == config.layers;
  if (layers.begin == 0 || (last && config.tied_embeddings)) add(rows_of(embedding_table(), config));
  if (last) add(rows_of(output_table(), config));
  add(is_deepseek(config) ? deepseek_shard_rules(config, source) : llama_shard_rules(config));
  if (!config.dense_layers.empty()) {
    auto dense = rows_of(feed_forward_table(), config);
    for (auto& rule : dense) rule.layers = config.dense_layers;
    add(dense);
  }
  add(mixture_shard_rules(config, source));
  return rules;
}

std::vector<std::string> product_keys(const ModelConfig& config, const weights::Source& source) {
  const std::string prefix = "model.layers.*.", ending = ".weight";
  std::vector<std::string> keys;
  for (const auto& rule : shard_rules(config, source, {0, config.layers})) {
    if (!rule.name.starts_with(prefix) || !rule.name.ends_with(ending) || rule.shape.size() != 2) continue;
    const std::string key = rule.name.substr(prefix.size(), rule.name.size() - prefix.size() - ending.size());
    // Taken by head, the router, and routed experts are none.
    const bool other = key == "self_attn.kv_b_proj" || key == "mlp.gate" || key.find('*') != key.npos;
    if (!other) keys.push_back(key);
  }
  return keys;
}

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

Decoder without_weights(const ModelConfig& config, const parallel::Shard& shard) {
  const int rotated = is_deepseek(config) ? config.sizes.rope : config.sizes.head_dim;
  return {.config = config,
          .embedding = {},
          .first_id = shard.vocabulary.begin,
          .layers = {},
          .norm = {},
          .output = {},
          .rope = make_rope(config.rope, rotated, config.rotates_pairs)};
}

void take_output(const ModelConfig& config, const parallel::Shard& shard,
                 const weights::ShardedWeights& weights, Decoder& model) {
  model.norm = take_vector(weights, "model.norm.weight");
  model.output = config.tied_embeddings ? *model.embedding : take_linear(weights, "lm_head");
  model.output->reduce = parallel::Reduce::gather;
  model.output->parts = shard.vocabulary_sizes;
}

Decoder make_decoder(const ModelConfig& config, const parallel::Shard& shard,
                     const weights::ShardedWeights& weights, const parallel::Range& layers) {
  Decoder model = without_weights(config, shard);
  if (weights.has("model.embed_tokens.weight")) model.embedding = take_linear(weights, "model.embed_tokens");
  if (layers.end == config.layers) take_output(config, shard, weights, model);
  for (int layer = layers.begin; layer < layers.end; ++layer)
    model.layers.push_back(take_layer(config, shard, weights, layer));
  return model;
}

std::vector<double> layer_sizes(const ModelConfig& config) {
  const parallel::Shard whole = parallel::shard_of(config.sizes, {1}, 0);
  std::vector<double> sizes(config.layers);
  for (const auto& rule : shard_rules(config, NoSource(), {0, config.layers})) {
    const auto first_star = rule.name.find('*');
    if (first_star == std::string::npos) continue;
    double size = first_star == rule.name.rfind('*') ? 1 : config.sizes.experts;
    for (const auto dim : rule.shape) size *= whole.whole(dim);
    for (int layer = 0; layer < config.layers; ++layer) {
      const auto& having = rule.layers;
      if (having.empty() || std::find(having.begin(), having.end(), layer) != having.end())
        sizes[layer] += size;
    }
  }
  return sizes;
}

}  // namespace tandem::models
