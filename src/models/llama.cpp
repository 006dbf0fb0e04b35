// The llama family's shard table.
#include <fmt/format.h>

#include <string>

#include "models/families.h"
#include "models/loading.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;
using parallel::Dim;
using parallel::Reduce;

const std::vector<TableRow>& shard_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.embed_tokens.weight",                   {Dim::vocabulary, Dim::hidden}, 0, Reduce::sum, {}}},
    {{"model.layers.*.input_layernorm.weight",       {Dim::hidden},                 -1, Reduce::none, {}}},
    {{"model.layers.*.self_attn.q_proj.weight",      {Dim::query, Dim::hidden},      0, Reduce::none, {}}},
    {{"model.layers.*.self_attn.k_proj.weight",      {Dim::key_value, Dim::hidden},  0, Reduce::none, {}}},
    {{"model.layers.*.self_attn.v_proj.weight",      {Dim::key_value, Dim::hidden},  0, Reduce::none, {}}},
    {{"model.layers.*.self_attn.o_proj.weight",      {Dim::hidden, Dim::query},      1, Reduce::sum, {}}},
    {{"model.layers.*.self_attn.q_proj.bias",        {Dim::query},                   0, Reduce::none, {}}, &ModelConfig::qkv_bias},
    {{"model.layers.*.self_attn.k_proj.bias",        {Dim::key_value},               0, Reduce::none, {}}, &ModelConfig::qkv_bias},
    {{"model.layers.*.self_attn.v_proj.bias",        {Dim::key_value},               0, Reduce::none, {}}, &ModelConfig::qkv_bias},
    {{"model.layers.*.self_attn.o_proj.bias",        {Dim::hidden},                 -1, Reduce::none, {}}, &ModelConfig::output_bias},
    {{"model.layers.*.self_attn.q_norm.weight",      {Dim::head},                   -1, Reduce::none, {}}, &ModelConfig::query_key_norm},
    {{"model.layers.*.self_attn.k_norm.weight",      {Dim::head},                   -1, Reduce::none, {}}, &ModelConfig::query_key_norm},
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

}  // namespace

std::vector<weights::ShardRule> feed_forward_shard_rules(const ModelConfig& config) {
  if (config.dense_layers.empty()) return {};
  auto rules = rows_of(feed_forward_table(), config);
  for (auto& rule : rules) rule.layers = config.dense_layers;
  return rules;
}

std::vector<weights::ShardRule> llama_shard_rules(const ModelConfig& config) {
  auto rules = rows_of(shard_table(), config);
  for (auto& rule : feed_forward_shard_rules(config)) rules.push_back(std::move(rule));
  return rules;
}

GroupedAttention take_grouped_attention(const ModelConfig& config, const parallel::Shard& shard,
                                        const weights::ShardedWeights& weights, int layer) {
  const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
  const auto take = [&](const char* name) { return take_linear(weights, prefix + name); };
  const auto norm = [&](const char* name) -> std::optional<mx::array> {
    const std::string full = prefix + name + ".weight";
    return weights.has(full) ? std::optional(take_vector(weights, full)) : std::nullopt;
  };
  return {.query = take("q_proj"),
          .key = take("k_proj"),
          .value = take("v_proj"),
          .output = take("o_proj"),
          .query_norm = norm("q_norm"),
          .key_norm = norm("k_norm"),
          .kv_of_query = shard.kv_of_query(),
          .head_dim = config.sizes.head_dim,
          .scale = config.attention_scale,
          .window = config.windows[layer]};
}

}  // namespace tandem::models
