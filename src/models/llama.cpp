#include "models/llama.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <cmath>
#include <string>

#include "kernels/attention.h"
#include "kernels/fused.h"
#include "kernels/pointwise.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;
using parallel::Dim;
using parallel::Reduce;
using weights::ShardRule;

struct Row {
  ShardRule rule;
  bool ModelConfig::*when = nullptr;  // the row is there where this is true; nullptr: always
};

const std::vector<Row>& shard_table() {
  static const std::vector<Row> table{
      // clang-format off
    {{"model.embed_tokens.weight",                   {Dim::vocabulary, Dim::hidden}, 0, Reduce::sum}},
    {{"model.layers.*.input_layernorm.weight",       {Dim::hidden},                 -1, Reduce::none}},
    {{"model.layers.*.self_attn.q_proj.weight",      {Dim::query, Dim::hidden},      0, Reduce::none}},
    {{"model.layers.*.self_attn.k_proj.weight",      {Dim::key_value, Dim::hidden},  0, Reduce::none}},
    {{"model.layers.*.self_attn.v_proj.weight",      {Dim::key_value, Dim::hidden},  0, Reduce::none}},
    {{"model.layers.*.self_attn.o_proj.weight",      {Dim::hidden, Dim::query},      1, Reduce::sum}},
    {{"model.layers.*.self_attn.q_proj.bias",        {Dim::query},                   0, Reduce::none}, &ModelConfig::qkv_bias},
    {{"model.layers.*.self_attn.k_proj.bias",        {Dim::key_value},               0, Reduce::none}, &ModelConfig::qkv_bias},
    {{"model.layers.*.self_attn.v_proj.bias",        {Dim::key_value},               0, Reduce::none}, &ModelConfig::qkv_bias},
    {{"model.layers.*.self_attn.o_proj.bias",        {Dim::hidden},                 -1, Reduce::none}, &ModelConfig::output_bias},
    {{"model.layers.*.self_attn.q_norm.weight",      {Dim::head},                   -1, Reduce::none}, &ModelConfig::query_key_norm},
    {{"model.layers.*.self_attn.k_norm.weight",      {Dim::head},                   -1, Reduce::none}, &ModelConfig::query_key_norm},
    {{"model.layers.*.post_attention_layernorm.weight", {Dim::hidden},              -1, Reduce::none}},
    {{"model.layers.*.mlp.gate_proj.weight",         {Dim::ffn, Dim::hidden},        0, Reduce::none}},
    {{"model.layers.*.mlp.up_proj.weight",           {Dim::ffn, Dim::hidden},        0, Reduce::none}},
    {{"model.layers.*.mlp.down_proj.weight",         {Dim::hidden, Dim::ffn},        1, Reduce::sum}},
    {{"model.layers.*.mlp.gate_proj.bias",           {Dim::ffn},                     0, Reduce::none}, &ModelConfig::mlp_bias},
    {{"model.layers.*.mlp.up_proj.bias",             {Dim::ffn},                     0, Reduce::none}, &ModelConfig::mlp_bias},
    {{"model.layers.*.mlp.down_proj.bias",           {Dim::hidden},                 -1, Reduce::none}, &ModelConfig::mlp_bias},
    {{"model.norm.weight",                           {Dim::hidden},                 -1, Reduce::none}},
    {{"lm_head.weight",                              {Dim::vocabulary, Dim::hidden}, 0, Reduce::gather}, &ModelConfig::separate_output},
      // clang-format on
  };
  return table;
}

// A family's weights as they are taken over.
struct Source {
  const ModelConfig& config;
  const weights::ShardedWeights& weights;
};

// A norm's weight or a bias, in the dtype it is used in.
mx::array take_vector(const weights::ShardedWeights& weights, const std::string& name) {
  mx::array vector = weights.take(name);
  if (mx::default_device() == mx::Device::cpu) vector = mx::astype(vector, mx::float32);
  mx::eval(vector);
  return vector;
}

// The matrix `name`.weight with `name`.bias, if there is one, and the reduction its row in the table names.
ShardedLinear take_linear(const Source& source, const std::string& name, Reduce reduce) {
  auto& [config, weights] = source;
  kernels::Matrix matrix{weights.take(name + ".weight"), std::nullopt, nullptr};
  if (weights.has(name + ".scales")) {
    matrix.affine = {weights.take(name + ".scales"), weights.take(name + ".biases"),
                     config.quantisation->group, config.quantisation->bits};
  }
  if (mx::default_device() == mx::Device::cpu) matrix = kernels::pack(matrix);
  ShardedLinear linear{std::move(matrix), std::nullopt, reduce, {}};
  if (weights.has(name + ".bias")) linear.bias = take_vector(weights, name + ".bias");
  return linear;
}

Reduce reduction_of(const std::string& pattern) {
  for (const auto& row : shard_table()) {
    if (row.rule.name == pattern) return row.rule.reduce;
  }
  throw std::logic_error("no such row in the shard table: " + pattern);
}

LlamaLayer make_layer(const Source& source, int layer) {
  auto& weights = source.weights;
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const auto take = [&](const std::string& name) {
    return take_linear(source, prefix + name, reduction_of("model.layers.*." + name + ".weight"));
  };
  const auto norm = [&](const char* name) -> std::optional<mx::array> {
    const std::string full = prefix + name + ".weight";
    return weights.has(full) ? std::optional(take_vector(weights, full)) : std::nullopt;
  };
  return LlamaLayer{
      .attention_norm = *norm("input_layernorm"),
      .query = take("self_attn.q_proj"),
      .key = take("self_attn.k_proj"),
      .value = take("self_attn.v_proj"),
      .attention_output = take("self_attn.o_proj"),
      .query_norm = norm("self_attn.q_norm"),
      .key_norm = norm("self_attn.k_norm"),
      .ffn_norm = *norm("post_attention_layernorm"),
      .gate = take("mlp.gate_proj"),
      .up = take("mlp.up_proj"),
      .down = take("mlp.down_proj"),
  };
}

// What a forward pass gives each of its layers.
struct Pass {
  kernels::Angles angles;
  const std::vector<SequenceRows>& sequences;

  std::vector<kernels::AttentionRows> rows(int layer) const {
    std::vector<kernels::AttentionRows> all;
    for (const auto& one : sequences) all.push_back({one.tokens, &one.cache->layer(layer)});
    return all;
  }
};

// This rank's part of the attention's output.
mx::array attend(const Llama& model, int layer, const mx::array& x, const Pass& pass) {
  const LlamaLayer& w = model.layers[layer];
  const int head_dim = model.config.sizes.head_dim;
  const auto projected = products(x, {&w.query, &w.key, &w.value});
  mx::array q = projected[0], k = projected[1];  // [T, Hq * D], [T, Hkv * D]
  if (w.query_norm) q = kernels::rms_norm(q, *w.query_norm, model.config.rms_norm_eps);
  if (w.key_norm) k = kernels::rms_norm(k, *w.key_norm, model.config.rms_norm_eps);
  const auto rotated = kernels::rotate({q, k}, pass.angles, head_dim);
  const kernels::AttentionHeads heads{model.kv_of_query, k.shape(1) / head_dim,
                                      1 / std::sqrt(static_cast<float>(head_dim)),
                                      model.config.windows[layer]};
  const mx::array y =
      kernels::attention(rotated[0], rotated[1], projected[2], heads, pass.rows(layer));  // [T, Hq * D]
  return products(y, {&w.attention_output}).front();
}

// This rank's part of the feed-forward's output.
mx::array feed_forward(const LlamaLayer& w, const mx::array& x) {
  const auto projected = products(x, {&w.gate, &w.up});  // [T, ffn] each
  return products(kernels::silu_multiply(projected[0], projected[1]), {&w.down}).front();
}

}  // namespace

std::vector<ShardRule> llama_shard_rules(const ModelConfig& config) {
  std::vector<ShardRule> rules;
  for (const auto& row : shard_table()) {
    if (row.when && !(config.*row.when)) continue;
    if (config.quantisation && row.rule.shape.size() == 2) {
      const auto [bits, group] = *config.quantisation;
      for (auto& rule : weights::quantised_rules(row.rule, bits, group)) rules.push_back(std::move(rule));
    } else {
      rules.push_back(row.rule);
    }
  }
  return rules;
}

Llama make_llama(const ModelConfig& config, const parallel::Shard& shard,
                 const weights::ShardedWeights& weights) {
  const Source source{config, weights};
  Llama model{
      .config = config,
      .embedding = take_linear(source, "model.embed_tokens", reduction_of("model.embed_tokens.weight")),
      .first_id = shard.vocabulary.begin,
      .kv_of_query = shard.kv_of_query(),
      .layers = {},
      .norm = take_vector(weights, "model.norm.weight"),
      .output = {},
      .rope = make_rope(config.rope, config.sizes.head_dim),
  };
  if (config.tied_embeddings) {
    model.output = model.embedding;
    model.output.reduce = reduction_of("lm_head.weight");
  } else {
    model.output = take_linear(source, "lm_head", reduction_of("lm_head.weight"));
  }
  model.output.parts = shard.vocabulary_sizes;
  for (int layer = 0; layer < config.layers; ++layer) model.layers.push_back(make_layer(source, layer));
  return model;
}

std::size_t step_bytes(const Llama& model) {
  std::size_t sum = model.norm.nbytes() + model.output.weight.bytes();
  const auto add = [&](const std::optional<mx::array>& array) { sum += array ? array->nbytes() : 0; };
  for (const auto& w : model.layers) {
    for (const auto* matrix : {&w.query, &w.key, &w.value, &w.attention_output, &w.gate, &w.up, &w.down}) {
      sum += matrix->weight.bytes();
      add(matrix->bias);
    }
    for (const auto& norm :
         {std::optional(w.attention_norm), w.query_norm, w.key_norm, std::optional(w.ffn_norm)})
      add(norm);
  }
  return sum;
}

mx::array forward(const Llama& model, const mx::array& ids, const std::vector<SequenceRows>& sequences,
                  const Context& context) {
  const float eps = model.config.rms_norm_eps;
  const Pass pass{angles(model.rope, positions_of(sequences)), sequences};
  mx::array x = embed(ids, model.embedding, model.first_id, context);  // [T, hidden]
  mx::array normed = kernels::rms_norm(x, model.layers.front().attention_norm, eps);
  for (int layer = 0; layer < model.config.layers; ++layer) {
    const LlamaLayer& w = model.layers[layer];
    const bool last = layer + 1 == model.config.layers;
    // Between two reductions all is one operation.
    const auto first = kernels::fused({x, attend(model, layer, normed, pass)});
    const auto attended =
        kernels::add_rms_norm(first[0], reduced(first[1], w.attention_output, context), w.ffn_norm, eps);
    const auto second = kernels::fused({attended.sum, feed_forward(w, attended.norm)});
    const auto fed = kernels::add_rms_norm(second[0], reduced(second[1], w.down, context),
                                           last ? model.norm : model.layers[layer + 1].attention_norm, eps);
    x = fed.sum;
    normed = fed.norm;
  }
  return normed;
}

mx::array logits(const Llama& model, const mx::array& hidden, const Context& context) {
  return reduced(products(hidden, {&model.output}).front(), model.output, context);
}

}  // namespace tandem::models
