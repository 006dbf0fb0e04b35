#include "models/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "base/file.h"
#include "models/config_fields.h"

namespace tandem::models {
namespace {

using nlohmann::json;

bool is_deepseek(const std::string& family) { return family == "deepseek_v2" || family == "deepseek_v3"; }

// Sliding windows: mistral gives one for all layers; qwen2 and qwen3 one for the layers from
// max_window_layers on, or layer_types.
std::vector<int> parse_windows(const json& config, const std::string& family, int layers) {
  std::vector<int> windows(layers, 0);
  const bool qwen = family.starts_with("qwen");
  if (!find(config, "sliding_window") || family == "llama" || is_deepseek(family)) return windows;
  if (qwen && !boolean_or(config, "use_sliding_window", false)) return windows;
  const int window = integer(config, "sliding_window", 1, INT32_MAX);
  const int first = qwen ? integer_or(config, "max_window_layers", 0, most_layers, 28) : 0;
  const json* types = find(config, "layer_types");
  if (types && (!types->is_array() || static_cast<int>(types->size()) != layers)) {
    throw InputError(fmt::format("\"layer_types\" is not a list of {} layers", layers));
  }
  for (int layer = 0; layer < layers; ++layer) {
    if (types && (*types)[layer] != "sliding_attention" && (*types)[layer] != "full_attention") {
      throw InputError(
          fmt::format("\"layer_types\" has {}; full_attention and sliding_attention are supported",
                      (*types)[layer].dump()));
    }
    const bool slides = types ? (*types)[layer] == "sliding_attention" : layer >= first;
    if (slides) windows[layer] = window;
  }
  return windows;
}

std::vector<int> parse_end_ids(const json& config) {
  const json* value = find(config, "eos_token_id");
  if (!value) return {};
  const json list = value->is_array() ? *value : json::array({*value});
  std::vector<int> ids;
  for (const auto& id : list) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > most_vocabulary) {
      throw InputError(
          fmt::format("\"eos_token_id\" is {}; expected a token id or a list of them", value->dump()));
    }
    ids.push_back(id.get<int>());
  }
  return ids;
}

ModelConfig::Advised parse_advice(const json& generation) {
  ModelConfig::Advised advised;
  if (!boolean_or(generation, "do_sample", true)) return advised;
  if (find(generation, "temperature"))
    advised.temperature = static_cast<float>(positive(generation, "temperature", 1));
  if (find(generation, "top_p")) advised.top_p = static_cast<float>(positive(generation, "top_p", 1));
  if (find(generation, "top_k")) advised.top_k = integer(generation, "top_k", 0, most_vocabulary);
  return advised;
}

// The cuts that leave each group of inputs whole (ModelSizes::at_once).
void align_cuts(ModelConfig& config) {
  if (!config.formats.all) return;
  auto& sizes = config.sizes;
  const int value_dim = sizes.latent > 0 ? sizes.value_dim : sizes.head_dim;
  const int of_heads = std::gcd(sizes.query_heads * value_dim, config.formats.largest_group(".o_proj"));
  sizes.heads_at_once = of_heads / std::gcd(value_dim, of_heads);
  sizes.columns_at_once = config.formats.largest_group(".down_proj");
}

void reject_unsupported(const json& config) {
  const std::string activation = string_or(config, "hidden_act", "silu");
  if (activation != "silu")
    throw InputError(fmt::format("\"hidden_act\" is \"{}\"; only silu is supported", activation));
}

// The factor that yarn puts on the scores where a model gives mscale_all_dim (DeepSeek-V2's yarn).
double yarn_score_factor(const json& config) {
  const json* parameters = find(config, "rope_parameters");
  const json* rope = parameters ? parameters : find(config, "rope_scaling");
  if (!rope || !rope->is_object() || !find(*rope, "mscale_all_dim")) return 1;
  const double factor = positive(*rope, "factor", 1);
  if (factor <= 1) return 1;
  const double scale = 0.1 * positive(*rope, "mscale_all_dim", 1) * std::log(factor) + 1;
  return scale * scale;
}

void parse_latent_attention(const json& config, ModelConfig& result) {
  auto& sizes = result.sizes;
  sizes.query_latent = integer_or(config, "q_lora_rank", 0, most_width, 0);
  sizes.latent = integer(config, "kv_lora_rank", 1, most_width);
  sizes.rope = integer(config, "qk_rope_head_dim", 2, most_width);
  sizes.head_dim = sizes.rope + integer(config, "qk_nope_head_dim", 1, most_width);
  sizes.value_dim = integer(config, "v_head_dim", 1, most_width);
  sizes.kv_heads = sizes.query_heads;
  if (sizes.rope % 2 != 0)
    throw InputError(
        fmt::format("\"qk_rope_head_dim\" is {}; rotary embedding needs an even one", sizes.rope));
  result.compressed_query = sizes.query_latent > 0;
  result.whole_query = !result.compressed_query;
  result.compressed_query_bias = result.compressed_query && boolean_or(config, "attention_bias", false);
  result.rotates_pairs = boolean_or(config, "rope_interleave", true);
  result.attention_scale = static_cast<float>(yarn_score_factor(config) / std::sqrt(sizes.head_dim));
}

void parse_grouped_attention(const json& config, ModelConfig& result) {
  auto& sizes = result.sizes;
  sizes.kv_heads = integer_or(config, "num_key_value_heads", 1, most_width, sizes.query_heads);
  sizes.head_dim = integer_or(config, "head_dim", 2, most_width, sizes.hidden / sizes.query_heads);
  if (sizes.query_heads % sizes.kv_heads != 0) {
    throw InputError(
        fmt::format("\"num_attention_heads\" is {}, not a multiple of \"num_key_value_heads\", {}",
                    sizes.query_heads, sizes.kv_heads));
  }
  if (sizes.head_dim < 2 || sizes.head_dim % 2 != 0) {
    throw InputError(fmt::format("the head size is {}; rotary embedding needs an even one", sizes.head_dim));
  }
  result.attention_scale = 1 / std::sqrt(static_cast<float>(sizes.head_dim));
}

// A token's choice among the experts, in the three families' words.
void parse_routing(const json& config, ModelConfig& result) {
  auto& routing = result.routing;
  routing.experts = result.sizes.experts;
  routing.end_held = routing.experts;
  routing.chosen = integer(config, "num_experts_per_tok", 1, routing.experts);
  routing.normalised = boolean_or(config, "norm_topk_prob", false);
  if (!is_deepseek(result.family)) return;
  routing.scale = static_cast<float>(positive(config, "routed_scaling_factor", 1));
  const bool v3 = result.family == "deepseek_v3";
  const std::string method = string_or(config, "topk_method", v3 ? "noaux_tc" : "greedy");
  const std::string scores = string_or(config, "scoring_func", v3 ? "sigmoid" : "softmax");
  if (method != "noaux_tc" && method != "greedy" && method != "group_limited_greedy")
    throw InputError(fmt::format(
        "\"topk_method\" is \"{}\"; greedy, group_limited_greedy and noaux_tc are supported", method));
  if (scores != "sigmoid" && scores != "softmax")
    throw InputError(fmt::format("\"scoring_func\" is \"{}\"; softmax and sigmoid are supported", scores));
  routing.score = scores == "sigmoid" ? kernels::Routing::Score::sigmoid : kernels::Routing::Score::softmax;
  routing.group_score =
      method == "noaux_tc" ? kernels::Routing::GroupScore::best_two : kernels::Routing::GroupScore::best;
  if (!v3 && routing.normalised) {
    if (routing.chosen > 1)
      routing.scale = 1;  // DeepSeek-V2 either normalises or scales
    else
      routing.normalised = false;
  }
  result.router_bias = method == "noaux_tc";
  if (method == "greedy") return;
  routing.groups = integer_or(config, "n_group", 1, routing.experts, 1);
  routing.chosen_groups = integer_or(config, "topk_group", 1, routing.groups, routing.groups);
  const int size = routing.experts / routing.groups;
  if (routing.experts % routing.groups != 0 || routing.chosen > routing.chosen_groups * size ||
      (routing.group_score == kernels::Routing::GroupScore::best_two &&
       routing.groups > routing.chosen_groups && size < 2)) {
    throw InputError(
        fmt::format("\"n_group\" is {} and \"topk_group\" {}; {} of {} experts cannot be chosen so",
                    routing.groups, routing.chosen_groups, routing.chosen, routing.experts));
  }
}

// qwen3_moe's layers without experts.
std::vector<int> parse_dense_layers(const json& config, int layers) {
  const json* given = find(config, "mlp_only_layers");
  if (!given) return {};
  const auto is_layer = [&](const json& layer) {
    return layer.is_number_integer() && layer >= 0 && layer < layers;
  };
  if (!given->is_array() || !std::all_of(given->begin(), given->end(), is_layer)) {
    throw InputError(fmt::format("\"mlp_only_layers\" is {}; expected a list of layers from 0 to {}",
                                 given->dump(), layers - 1));
  }
  return given->get<std::vector<int>>();
}

// Which layers have experts, and how many of what width.
void parse_experts(const json& config, ModelConfig& result) {
  auto& sizes = result.sizes;
  const bool deepseek = is_deepseek(result.family);
  std::vector<bool> sparse(result.layers, false);
  if (deepseek && find(config, "n_routed_experts")) {
    const int first = integer_or(config, "first_k_dense_replace", 0, most_layers, 0);
    const int every = integer_or(config, "moe_layer_freq", 1, most_layers, 1);
    for (int i = 0; i < result.layers; ++i) sparse[i] = i >= first && i % every == 0;
    sizes.experts = integer(config, "n_routed_experts", 1, most_experts);
  } else if (result.family == "qwen3_moe") {
    const int every = integer_or(config, "decoder_sparse_step", 1, most_layers, 1);
    for (int i = 0; i < result.layers; ++i) sparse[i] = (i + 1) % every == 0;
    for (const int layer : parse_dense_layers(config, result.layers)) sparse[layer] = false;
    sizes.experts =
        integer(config, find(config, "num_experts") ? "num_experts" : "num_local_experts", 1, most_experts);
  }
  for (int i = 0; i < result.layers; ++i)
    (sparse[i] ? result.expert_layers : result.dense_layers).push_back(i);
  if (result.expert_layers.empty()) {
    sizes.experts = 0;
    return;
  }
  if (result.dense_layers.empty()) sizes.ffn = 0;
  sizes.expert_ffn = integer(config, "moe_intermediate_size", 1, most_width);
  if (deepseek) {
    const int most_shared = most_width / sizes.expert_ffn;
    sizes.shared_ffn = sizes.expert_ffn * integer_or(config, "n_shared_experts", 0, most_shared, 0);
  }
  parse_routing(config, result);
}

}  // namespace

ModelConfig parse_config(const json& config) {
  ModelConfig result;
  result.family = string_or(config, "model_type", "");
  const std::string& family = result.family;
  const bool qwen2 = family == "qwen2";
  static const std::vector<std::string> families{"llama",     "mistral",     "qwen2",      "qwen3",
                                                 "qwen3_moe", "deepseek_v2", "deepseek_v3"};
  if (std::find(families.begin(), families.end(), family) == families.end()) {
    throw InputError(
        fmt::format("\"model_type\" is \"{}\"; this version runs {}", family, fmt::join(families, ", ")));
  }
  reject_unsupported(config);
  result.layers = integer(config, "num_hidden_layers", 1, most_layers);
  auto& sizes = result.sizes;
  sizes.hidden = integer(config, "hidden_size", 1, most_width);
  sizes.query_heads = integer(config, "num_attention_heads", 1, most_width);
  sizes.ffn = integer(config, "intermediate_size", 1, most_width);
  sizes.vocabulary = integer(config, "vocab_size", 1, most_vocabulary);
  if (is_deepseek(family)) {
    parse_latent_attention(config, result);
  } else {
    parse_grouped_attention(config, result);
  }
  const int head_rows = std::max(sizes.head_dim, sizes.head_dim - sizes.rope + sizes.value_dim);
  if (static_cast<std::int64_t>(sizes.query_heads) * head_rows > most_width) {
    throw InputError(
        fmt::format("{} heads of {} are wider than {}", sizes.query_heads, head_rows, most_width));
  }
  result.context = integer_or(config, "max_position_embeddings", 1, most_context, 2048);
  result.rms_norm_eps = static_cast<float>(positive(config, "rms_norm_eps", 1e-6));
  result.rope = parse_rope(config, result.context);
  result.windows = parse_windows(config, family, result.layers);
  result.tied_embeddings = boolean_or(config, "tie_word_embeddings", false);
  result.separate_output = !result.tied_embeddings;
  result.qkv_bias = qwen2 || boolean_or(config, "attention_bias", false);
  result.output_bias = !qwen2 && boolean_or(config, "attention_bias", false);
  result.mlp_bias = family == "llama" && boolean_or(config, "mlp_bias", false);
  result.query_key_norm = family.starts_with("qwen3");
  parse_experts(config, result);
  result.formats = parse_formats(config);
  align_cuts(result);
  result.end_ids = parse_end_ids(config);
  return result;
}

ModelConfig load_config(const std::filesystem::path& folder) {
  const auto parsed = [](const std::filesystem::path& file, auto parse) {
    const json object = read_json_file(file);
    try {
      return parse(object);
    } catch (const InputError& error) {
      throw InputError(fmt::format("{}: {}", file.string(), error.what()));
    }
  };
  ModelConfig config = parsed(folder / "config.json", parse_config);
  const auto generation = folder / "generation_config.json";
  if (std::filesystem::exists(generation)) {
    if (auto ids = parsed(generation, parse_end_ids); !ids.empty()) config.end_ids = std::move(ids);
    config.advised = parsed(generation, parse_advice);
  }
  return config;
}

}  // namespace tandem::models
