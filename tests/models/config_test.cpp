#include "models/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace tandem::models {
namespace {

using nlohmann::json;

json valid() {
  return json::parse(
      R"({"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0})");
}

ModelConfig parsed(const json& changes) {
  json config = valid();
  config.update(changes);
  return parse_config(config);
}

TEST(Config, RefusesWithTheFieldsName) {
  struct Row {
    json changes;
    std::vector<std::string> words;
  };
  const Row rows[] = {
      {{{"model_type", "mamba"}}, {"model_type", "mamba"}},
      {{{"model_type", nullptr}}, {"model_type"}},
      {{{"num_hidden_layers", 0}}, {"num_hidden_layers", "0"}},
      {{{"num_hidden_layers", 2.5}}, {"num_hidden_layers", "2.5"}},
      {{{"num_hidden_layers", 1e9}}, {"num_hidden_layers"}},
      {{{"hidden_size", "64"}}, {"hidden_size", "\"64\""}},
      {{{"vocab_size", nullptr}}, {"vocab_size", "missing"}},
      {{{"num_key_value_heads", 3}}, {"num_key_value_heads", "3"}},
      {{{"head_dim", 7}}, {"7", "even"}},
      {{{"rms_norm_eps", -1}}, {"rms_norm_eps", "-1"}},
      {{{"hidden_act", "gelu"}}, {"hidden_act", "gelu"}},
      {{{"tie_word_embeddings", 1}}, {"tie_word_embeddings"}},
      {{{"eos_token_id", "x"}}, {"eos_token_id"}},
      {{{"eos_token_id", {1, -2}}}, {"eos_token_id"}},
      {{{"rope_scaling", {{"type", "spiral"}}}}, {"spiral"}},
      {{{"rope_scaling", {{"type", "linear"}}}}, {"factor"}},
      {{{"rope_scaling", 5}}, {"rope_scaling"}},
      {{{"rope_parameters",
         {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 1}}}},
       {"high_freq_factor"}},
      {{{"partial_rotary_factor", 0.5}}, {"partial_rotary_factor"}},
      {{{"quantization_config", {{"bits", 4}}}}, {"quantization_config"}},
      {{{"quantization", {{"bits", 3}, {"group_size", 64}}}}, {"quantization", "3 bits"}},
      {{{"quantization", {{"bits", 4}, {"group_size", 48}}}}, {"groups of 48"}},
      {{{"quantization", {{"bits", 4}, {"group_size", 64}, {"mode", "mxfp4"}}}}, {"mxfp4"}},
      {{{"quantization", {{"bits", 4}, {"group_size", 64}, {"lm_head", {{"bits", 5}, {"group_size", 64}}}}}},
       {"lm_head", "5 bits"}},
      {{{"quantization_config", {{"quant_method", "fp8"}, {"fmt", "e5m2"}}}}, {"e5m2"}},
      {{{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 64}}}}},
       {"weight_block_size"}},
      {{{"quantization", 4}}, {"quantization"}},
      {{{"model_type", "mistral"}, {"sliding_window", 0}}, {"sliding_window"}},
  };
  for (const auto& row : rows) {
    try {
      parsed(row.changes);
      ADD_FAILURE() << row.changes << " was accepted";
    } catch (const InputError& error) {
      for (const auto& word : row.words) {
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      }
    }
  }
}

TEST(Config, BothSpellingsOfRopeSayTheSame) {
  const json scaling{{"factor", 8.0}, {"original_max_position_embeddings", 32}, {"beta_fast", 16}};
  json old_way = scaling, new_way = scaling;
  old_way["type"] = "yarn";
  new_way["rope_type"] = "yarn";
  new_way["rope_theta"] = 12345.0;
  const auto a = parsed({{"rope_theta", 12345.0}, {"rope_scaling", old_way}}).rope;
  const auto b = parsed({{"rope_parameters", new_way}}).rope;
  EXPECT_EQ(a.kind, RopeConfig::Kind::yarn);
  EXPECT_EQ(b.kind, a.kind);
  EXPECT_EQ(a.theta, 12345.0);
  EXPECT_EQ(b.theta, a.theta);
  EXPECT_EQ(a.original_context, 32);
  EXPECT_EQ(b.original_context, 32);
  EXPECT_EQ(a.beta_fast, 16);
  EXPECT_NEAR(a.attention_factor, 0.1 * std::log(8.0) + 1, 1e-12);
}

TEST(Config, FamiliesDiffer) {
  EXPECT_FALSE(parsed(json::object()).qkv_bias);
  const auto qwen2 = parsed({{"model_type", "qwen2"}});
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.query_key_norm);
  EXPECT_TRUE(parsed({{"model_type", "qwen3"}}).query_key_norm);
  const auto biased = parsed({{"attention_bias", true}, {"mlp_bias", true}});
  EXPECT_TRUE(biased.qkv_bias && biased.output_bias && biased.mlp_bias);
  EXPECT_EQ(parsed({{"head_dim", 16}}).sizes.head_dim, 16);
  EXPECT_EQ(parsed({{"num_key_value_heads", nullptr}}).sizes.kv_heads, 8);
  EXPECT_EQ(parsed({{"eos_token_id", {5, 6}}}).end_ids, (std::vector<int>{5, 6}));
}

json deepseek() {
  json config = valid();
  config.update(json::parse(
      R"({"model_type": "deepseek_v3", "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16,
      "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 8, "n_shared_experts": 2,
      "num_experts_per_tok": 3, "moe_intermediate_size": 20, "n_group": 4, "topk_group": 2,
      "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": true})"));
  return config;
}

TEST(Config, DeepSeek) {
  const auto v3 = parse_config(deepseek());
  EXPECT_EQ(v3.sizes.head_dim, 24);
  EXPECT_EQ(v3.sizes.shared_ffn, 40);
  EXPECT_EQ(v3.dense_layers, (std::vector<int>{0}));
  EXPECT_EQ(v3.expert_layers, (std::vector<int>{1, 2, 3}));
  EXPECT_TRUE(v3.compressed_query && v3.router_bias && v3.rotates_pairs && v3.routing.normalised);
  EXPECT_EQ(v3.routing.score, kernels::Routing::Score::sigmoid);
  EXPECT_EQ(v3.routing.groups, 4);
  EXPECT_FLOAT_EQ(v3.attention_scale, 1 / std::sqrt(24.0F));

  json config = deepseek();
  config.update({{"model_type", "deepseek_v2"}, {"q_lora_rank", nullptr}, {"topk_method", "greedy"}});
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 40.0}, {"mscale", 0.707}, {"mscale_all_dim", 0.707}};
  const auto v2 = parse_config(config);
  EXPECT_TRUE(v2.whole_query && !v2.router_bias);
  EXPECT_EQ(v2.routing.score, kernels::Routing::Score::softmax);
  EXPECT_EQ(v2.routing.groups, 1);
  const double scale = 0.1 * 0.707 * std::log(40.0) + 1;
  EXPECT_NEAR(v2.attention_scale, scale * scale / std::sqrt(24.0), 1e-6);
  EXPECT_EQ(v2.rope.attention_factor, 1);
}

TEST(Config, RefusesWhatNoRouterCanChoose) {
  const std::vector<std::pair<json, std::string>> rows{
      {{{"n_group", 3}}, "n_group"},
      {{{"topk_group", 5}}, "topk_group"},
      {{{"num_experts_per_tok", 5}}, "n_group"},  // 2 groups of 2
      {{{"num_experts_per_tok", 9}}, "num_experts_per_tok"},
      {{{"topk_method", "random"}}, "random"},
      {{{"scoring_func", "relu"}}, "relu"},
      {{{"kv_lora_rank", nullptr}}, "kv_lora_rank"},
      {{{"qk_rope_head_dim", 7}}, "qk_rope_head_dim"}};
  for (const auto& [changes, word] : rows) {
    json config = deepseek();
    config.update(changes);
    try {
      parse_config(config);
      ADD_FAILURE() << changes;
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  }
}

TEST(Config, WhichLayersOfQwen3HaveExperts) {
  json config = valid();
  config.update({{"model_type", "qwen3_moe"},
                 {"num_experts", 4},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 16},
                 {"decoder_sparse_step", 2},
                 {"mlp_only_layers", {1}}});
  EXPECT_EQ(parse_config(config).expert_layers, (std::vector<int>{3}));
  config.update({{"decoder_sparse_step", 1}, {"mlp_only_layers", json::array()}});
  EXPECT_EQ(parse_config(config).expert_layers, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(parse_config(config).sizes.ffn, 0);
}

TEST(Config, Windows) {
  using Windows = std::vector<int>;
  EXPECT_EQ(parsed({{"sliding_window", 16}}).windows, Windows(4, 0));  // llama has none
  EXPECT_EQ(parsed({{"model_type", "mistral"}, {"sliding_window", 16}}).windows, Windows(4, 16));
  EXPECT_EQ(parsed({{"model_type", "mistral"}, {"sliding_window", nullptr}}).windows, Windows(4, 0));
  const json qwen{{"model_type", "qwen2"}, {"sliding_window", 16}, {"max_window_layers", 3}};
  EXPECT_EQ(parsed(qwen).windows, Windows(4, 0));  // use_sliding_window is false
  json used = qwen;
  used["use_sliding_window"] = true;
  EXPECT_EQ(parsed(used).windows, (Windows{0, 0, 0, 16}));
  used["layer_types"] = {"sliding_attention", "full_attention", "full_attention", "full_attention"};
  EXPECT_EQ(parsed(used).windows, (Windows{16, 0, 0, 0}));
}

}  // namespace
}  // namespace tandem::models
