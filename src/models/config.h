// A model's config.json, checked. Field names follow transformers' configuration classes.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "kernels/routing.h"
#include "parallel/plan.h"
#include "parallel/shard.h"
#include "weights/formats.h"

namespace tandem::models {

// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) and how it is stretched.
struct RopeConfig {
  enum class Kind { plain, linear, llama3, yarn };
  Kind kind = Kind::plain;
  double theta = 10000;
  double factor = 1;
  int original_context = 0;  // original_max_position_embeddings
  // llama3
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  // yarn (Peng et al. 2023, arXiv:2309.00071)
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;
  double attention_factor = 1;  // multiplies cos and sin
};

struct ModelConfig {
  std::string family;  // model_type: llama, mistral, qwen2, qwen3, qwen3_moe, deepseek_v2, deepseek_v3
  int layers = 0;
  parallel::ModelSizes sizes;
  int context = 0;  // max_position_embeddings, tokens
  float rms_norm_eps = 0;
  RopeConfig rope;
  // Positions a layer's attention looks back, its own included; 0: all. One a layer.
  std::vector<int> windows;
  bool tied_embeddings = false;
  bool separate_output = true;  // !tied_embeddings
  bool qkv_bias = false;
  bool output_bias = false;  // of the attention
  bool mlp_bias = false;
  bool query_key_norm = false;
  // Of latent attention: whether queries are compressed too.
  bool compressed_query = false;
  bool whole_query = true;  // !compressed_query
  bool compressed_query_bias = false;
  bool router_bias = false;  // e_score_correction_bias
  weights::Formats formats;
  // Of grouped and latent attention: multiplies the scores.
  float attention_scale = 1;
  bool rotates_pairs = false;  // neighbours are turned together, not halves
  // Mixture of experts.
  std::vector<int> dense_layers, expert_layers;  // which layers have which feed-forward
  kernels::Routing routing;                      // all experts held
  // Sampling that the model's makers advise, generation_config.json.
  struct Advised {
    std::optional<float> temperature, top_p;
    std::optional<int> top_k;
  } advised;
  std::vector<int> end_ids;  // eos_token_id of generation_config.json, else of config.json

  parallel::Divisible divisible() const {
    return {layers,
            sizes.query_heads / sizes.heads_at_once,
            sizes.ffn / sizes.at_once(sizes.ffn),
            sizes.vocabulary,
            sizes.experts,
            sizes.expert_ffn / sizes.at_once(sizes.expert_ffn),
            sizes.shared_ffn / sizes.at_once(sizes.shared_ffn)};
  }
};

// InputError names the field, its value and what was expected.
ModelConfig parse_config(const nlohmann::json& config);

// `folder`/config.json with `folder`/generation_config.json's end ids and advice, where there is one.
// InputError names the file.
ModelConfig load_config(const std::filesystem::path& folder);

}  // namespace tandem::models
