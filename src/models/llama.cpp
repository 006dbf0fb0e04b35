// The shard table of the llama family's attention.
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
      // clang-format on
  };
  return table;
}

}  // namespace

std::vector<weights::ShardRule> llama_shard_rules(const ModelConfig& config) {
  return rows_of(shard_table(), config);
}

GroupedAttention take_grouped_attention(const ModelConfig& config, const parallel::Shard& shard,
                                        const weights::ShardedWeights& weights, int layer) {
  const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
  const auto take = [&](const char* name) { return take_linear(weights, prefix + name); };
  const auto norm = [&](const char* name) -> std::optional<mx::array> {
    const std::string full = prefix + name + ".weight";
    return weights.has(full) ? std::optional(take_vector(weights, full)) : std::nullopt;
  };
  GroupedAttention w{.query = take("q_proj"),
                     .key = take("k_proj"),
                     .value = take("v_proj"),
                     .output = take("o_proj"),
                     .query_norm = norm("q_norm"),
                     .key_norm = norm("k_norm"),
                     .kv_of_query = shard.kv_of_query(),
                     .head_dim = config.sizes.head_dim,
                     .scale = config.attention_scale,
                     .window = config.windows[layer]};
  join(weights, {&w.query, &w.key, &w.value});
  return w;
}

}  // namespace tandem::models
