// The shard tables of experts: Hugging Face's files have them one by one, mlx-community's in stacks.
#include <fmt/format.h>

#include <string>

#include "models/families.h"
#include "models/loading.h"

namespace tandem::models {
namespace {

using parallel::Dim;
using parallel::Reduce;

const std::vector<TableRow>& router_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.layers.*.mlp.gate.weight",                  {Dim::experts, Dim::hidden}, -1, Reduce::none, {}}},
    {{"model.layers.*.mlp.gate.e_score_correction_bias", {Dim::experts},              -1, Reduce::none, {}}, &ModelConfig::router_bias},
      // clang-format on
  };
  return table;
}

const std::vector<TableRow>& shared_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.layers.*.mlp.shared_experts.gate_proj.weight", {Dim::shared_ffn, Dim::hidden}, 0, Reduce::none, {}}},
    {{"model.layers.*.mlp.shared_experts.up_proj.weight",   {Dim::shared_ffn, Dim::hidden}, 0, Reduce::none, {}}},
    {{"model.layers.*.mlp.shared_experts.down_proj.weight", {Dim::hidden, Dim::shared_ffn}, 1, Reduce::sum, {}}},
      // clang-format on
  };
  return table;
}

const std::vector<TableRow>& single_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.layers.*.mlp.experts.*.gate_proj.weight", {Dim::expert_ffn, Dim::hidden}, 0, Reduce::none, {}}},
    {{"model.layers.*.mlp.experts.*.up_proj.weight",   {Dim::expert_ffn, Dim::hidden}, 0, Reduce::none, {}}},
    {{"model.layers.*.mlp.experts.*.down_proj.weight", {Dim::hidden, Dim::expert_ffn}, 1, Reduce::sum, {}}},
      // clang-format on
  };
  return table;
}

const std::vector<TableRow>& stacked_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.layers.*.mlp.switch_mlp.gate_proj.weight", {Dim::experts, Dim::expert_ffn, Dim::hidden}, 1, Reduce::none, {}}},
    {{"model.layers.*.mlp.switch_mlp.up_proj.weight",   {Dim::experts, Dim::expert_ffn, Dim::hidden}, 1, Reduce::none, {}}},
    {{"model.layers.*.mlp.switch_mlp.down_proj.weight", {Dim::experts, Dim::hidden, Dim::expert_ffn}, 2, Reduce::sum, {}}},
      // clang-format on
  };
  return table;
}

}  // namespace

std::vector<weights::ShardRule> mixture_shard_rules(const ModelConfig& config,
                                                    const weights::Source& source) {
  if (config.expert_layers.empty()) return {};
  const bool stacked = source.has(
      fmt::format("model.layers.{}.mlp.switch_mlp.gate_proj.weight", config.expert_layers.front()));
  std::vector<weights::ShardRule> rules;
  const auto add = [&](const std::vector<TableRow>& table) {
    for (auto& rule : rows_of(table, config)) {
      rule.layers = config.expert_layers;
      rules.push_back(std::move(rule));
    }
  };
  add(router_table());
  add(stacked ? stacked_table() : single_table());
  if (config.sizes.shared_ffn > 0) add(shared_table());
  return rules;
}

Mixture take_mixture(const ModelConfig& config, const parallel::Shard& shard,
                     const weights::ShardedWeights& weights, int layer) {
  const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
  const bool stacked = weights.has(prefix + "switch_mlp.gate_proj.weight");
  const auto& sizes = config.sizes;
  const bool by_expert = shard.experts.size() < sizes.experts;
  // `axis` of the stack is cut where ranks share columns.
  const auto experts = [&](const char* name, int out, int in, int axis) {
    const std::string stack = prefix + "switch_mlp." + name;
    return ShardedExperts{.weight = stacked ? take_stack(weights, stack)
                                            : take_experts(weights, prefix + "experts", shard.experts, name),
                          .place = {stack,
                                    {sizes.experts, out, in},
                                    by_expert ? 0 : axis,
                                    by_expert ? shard.experts : shard.expert_ffn}};
  };
  Mixture w{.router = take_float32(weights, prefix + "gate"),
            .router_bias = {},
            .routing = config.routing,
            .gate = experts("gate_proj", sizes.expert_ffn, sizes.hidden, 1),
            .up = experts("up_proj", sizes.expert_ffn, sizes.hidden, 1),
            .down = experts("down_proj", sizes.hidden, sizes.expert_ffn, 2),
            .shared = {}};
  w.routing.first_held = shard.experts.begin;
  w.routing.end_held = shard.experts.end;
  if (config.router_bias) w.router_bias = take_vector(weights, prefix + "gate.e_score_correction_bias");
  if (config.sizes.shared_ffn > 0) w.shared = take_feed_forward(weights, prefix + "shared_experts.");
  return w;
}

}  // namespace tandem::models
