// The shard table of deepseek_v2's and deepseek_v3's attention. A multi-token-prediction layer, which stands
// after the last one in V3's files, is not asked for.
#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <string>

#include "kernels/matrix.h"
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
    {{"model.layers.*.self_attn.q_proj.weight",             {Dim::query, Dim::hidden},       0, Reduce::none, {}}, &ModelConfig::whole_query},
    {{"model.layers.*.self_attn.q_a_proj.weight",           {Dim::query_latent, Dim::hidden}, -1, Reduce::none, {}}, &ModelConfig::compressed_query},
    {{"model.layers.*.self_attn.q_a_proj.bias",             {Dim::query_latent},            -1, Reduce::none, {}}, &ModelConfig::compressed_query_bias},
    {{"model.layers.*.self_attn.q_a_layernorm.weight",      {Dim::query_latent},            -1, Reduce::none, {}}, &ModelConfig::compressed_query},
    {{"model.layers.*.self_attn.q_b_proj.weight",           {Dim::query, Dim::query_latent}, 0, Reduce::none, {}}, &ModelConfig::compressed_query},
    {{"model.layers.*.self_attn.kv_a_proj_with_mqa.weight", {Dim::latent_rope, Dim::hidden}, -1, Reduce::none, {}}},
    {{"model.layers.*.self_attn.kv_a_proj_with_mqa.bias",   {Dim::latent_rope},             -1, Reduce::none, {}}, &ModelConfig::output_bias},
    {{"model.layers.*.self_attn.kv_a_layernorm.weight",     {Dim::latent},                  -1, Reduce::none, {}}},
    {{"model.layers.*.self_attn.o_proj.weight",             {Dim::hidden, Dim::value},       1, Reduce::sum, {}}},
    {{"model.layers.*.self_attn.o_proj.bias",               {Dim::hidden},                  -1, Reduce::none, {}}, &ModelConfig::output_bias},
      // clang-format on
  };
  return table;
}

// From the latent to every head's keys (the part that is not rotated) and values: in one, or by head with the
// keys' transposed, as mlx-community's V3 files have it.
const std::vector<TableRow>& one_up_table() {
  static const std::vector<TableRow> table{
      {{"model.layers.*.self_attn.kv_b_proj.weight", {Dim::up, Dim::latent}, 0, Reduce::none, {}}}};
  return table;
}
const std::vector<TableRow>& up_by_head_table() {
  static const std::vector<TableRow> table{
      // clang-format off
    {{"model.layers.*.self_attn.embed_q.weight",     {Dim::heads, Dim::latent, Dim::nope},       0, Reduce::none, {}}},
    {{"model.layers.*.self_attn.unembed_out.weight", {Dim::heads, Dim::value_head, Dim::latent}, 0, Reduce::none, {}}},
      // clang-format on
  };
  return table;
}

// Rows [first, end) of each head of kv_b_proj's arrays [H * (nope + value), n]: [H, end - first, n].
mx::array rows_by_head(const mx::array& up, int head_rows, int first, int end) {
  const mx::Device cpu = mx::Device::cpu;
  const int heads = up.shape(0) / head_rows;
  const mx::array all = mx::reshape(up, {heads, head_rows, -1}, cpu);
  return mx::contiguous(mx::slice(all, {0, first, 0}, {heads, end, all.shape(2)}, cpu), false, cpu);
}

// Values [H, value, latent] stay as they are stored. Keys [H, latent, nope] are turned over, for which
// quantised ones become float32.
std::pair<kernels::Experts, kernels::Experts> split_up(const weights::ShardedWeights& weights,
                                                       const weights::StoredMatrix& up, int nope, int value) {
  weights::StoredMatrix values{values_by_head(up.weight, nope, value), {}, {}, up.quantisation};
  if (up.scales) {
    values.scales = values_by_head(*up.scales, nope, value);
    values.biases = values_by_head(*up.biases, nope, value);
  }
  mx::array keys = keys_by_head(dense(up), nope, value);
  const bool on_gpu = !kernels::on_cpu();
  if (up.scales && on_gpu) keys = mx::astype(keys, up.scales->dtype(), mx::Device::cpu);  // as all else there
  settle(weights, {keys, values.weight});
  if (up.scales) settle(weights, {*values.scales, *values.biases});
  return {experts_from(weights, {keys, {}, {}, {}}), experts_from(weights, values)};
}

}  // namespace

mx::array keys_by_head(const mx::array& up, int nope, int value) {
  const mx::array keys = mx::swapaxes(rows_by_head(up, nope + value, 0, nope), 1, 2, mx::Device::cpu);
  return mx::contiguous(keys, false, mx::Device::cpu);
}

mx::array values_by_head(const mx::array& up, int nope, int value) {
  return rows_by_head(up, nope + value, nope, nope + value);
}

std::vector<weights::ShardRule> deepseek_shard_rules(const ModelConfig& config,
                                                     const weights::Source& source) {
  auto rules = rows_of(shard_table(), config);
  const bool by_head = source.has("model.layers.0.self_attn.embed_q.weight");
  for (auto& rule : rows_of(by_head ? up_by_head_table() : one_up_table(), config))
    rules.push_back(std::move(rule));
  return rules;
}

LatentAttention take_latent_attention(const ModelConfig& config, const weights::ShardedWeights& weights,
                                      int layer) {
  const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
  const auto take = [&](const char* name) { return take_linear(weights, prefix + name); };
  const auto& sizes = config.sizes;
  LatentAttention w{.query_down = {},
                    .query_norm = {},
                    .query = take(config.compressed_query ? "q_b_proj" : "q_proj"),
                    .latent = take("kv_a_proj_with_mqa"),
                    .latent_norm = take_vector(weights, prefix + "kv_a_layernorm.weight"),
                    .key_up = {},
                    .value_up = {},
                    .output = take("o_proj"),
                    .nope = sizes.head_dim - sizes.rope,
                    .rope = sizes.rope,
                    .scale = config.attention_scale};
  if (config.compressed_query) {
    w.query_down = take("q_a_proj");
    w.query_norm = take_vector(weights, prefix + "q_a_layernorm.weight");
  }
  join(weights, {&w.latent, w.query_down ? &*w.query_down : &w.query});
  if (weights.has(prefix + "embed_q.weight")) {
    w.key_up = take_stack(weights, prefix + "embed_q");
    w.value_up = take_stack(weights, prefix + "unembed_out");
  } else {
    std::tie(w.key_up, w.value_up) =
        split_up(weights, weights.take_matrix(prefix + "kv_b_proj.weight"), w.nope, sizes.value_dim);
  }
  return w;
}

}  // namespace tandem::models
