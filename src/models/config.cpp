#include "models/config.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "base/file.h"

namespace tandem::models {
namespace {

using nlohmann::json;

constexpr int most_layers = 1000;
constexpr int most_width = 1 << 20;
constexpr int most_vocabulary = 1 << 22;
constexpr int most_context = 1 << 24;

// A field that is absent or null counts as missing.
const json* find(const json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

int integer(const json& object, const char* name, int least, int most) {
  const json* value = find(object, name);
  if (!value) throw InputError(fmt::format("\"{}\" is missing", name));
  if (!value->is_number_integer() || value->get<std::int64_t>() < least ||
      value->get<std::int64_t>() > most) {
    throw InputError(
        fmt::format("\"{}\" is {}; expected a whole number from {} to {}", name, value->dump(), least, most));
  }
  return value->get<int>();
}

int integer_or(const json& object, const char* name, int least, int most, int fallback) {
  return find(object, name) ? integer(object, name, least, most) : fallback;
}

double positive(const json& object, const char* name, double fallback) {
  const json* value = find(object, name);
  if (!value) return fallback;
  if (!value->is_number() || !(value->get<double>() > 0) || !std::isfinite(value->get<double>())) {
    throw InputError(fmt::format("\"{}\" is {}; expected a number above 0", name, value->dump()));
  }
  return value->get<double>();
}

bool boolean_or(const json& object, const char* name, bool fallback) {
  const json* value = find(object, name);
  if (!value) return fallback;
  if (!value->is_boolean())
    throw InputError(fmt::format("\"{}\" is {}; expected true or false", name, value->dump()));
  return value->get<bool>();
}

std::string string_or(const json& object, const char* name, const std::string& fallback) {
  const json* value = find(object, name);
  if (!value) return fallback;
  if (!value->is_string())
    throw InputError(fmt::format("\"{}\" is {}; expected a string", name, value->dump()));
  return value->get<std::string>();
}

// YaRN's attention factor: 0.1·m·ln(s) + 1 (arXiv:2309.00071, section 3.4), or the ratio of two where a model
// gives mscale and mscale_all_dim, as DeepSeek-V2 does.
double yarn_attention_factor(const json& rope, double factor) {
  const auto scale = [&](double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; };
  if (find(rope, "attention_factor")) return positive(rope, "attention_factor", 1);
  if (find(rope, "mscale") && find(rope, "mscale_all_dim")) {
    return scale(positive(rope, "mscale", 1)) / scale(positive(rope, "mscale_all_dim", 1));
  }
  return scale(1);
}

// Both spellings: {"rope_parameters": {rope_theta, rope_type, …}}, and {"rope_theta", "rope_scaling": {type,
// …}}.
RopeConfig parse_rope(const json& config, int context) {
  static const json none = json::object();
  const json* parameters = find(config, "rope_parameters");
  const json* scaling = parameters ? parameters : find(config, "rope_scaling");
  const json& rope = scaling ? *scaling : none;
  if (!rope.is_object())
    throw InputError(fmt::format("\"rope_scaling\" is {}; expected an object", rope.dump()));

  RopeConfig result;
  result.theta = positive(rope, "rope_theta", positive(config, "rope_theta", 10000));
  if (positive(rope, "partial_rotary_factor", positive(config, "partial_rotary_factor", 1)) != 1) {
    throw InputError("\"partial_rotary_factor\" other than 1 is not supported");
  }
  const std::string type = string_or(rope, "rope_type", string_or(rope, "type", "default"));
  if (type == "default") return result;
  if (type != "linear" && type != "llama3" && type != "yarn") {
    throw InputError(
        fmt::format("rope type \"{}\" is not supported; default, linear, llama3 and yarn are", type));
  }
  if (!find(rope, "factor")) throw InputError(fmt::format("rope type \"{}\" needs a \"factor\"", type));
  result.factor = positive(rope, "factor", 1);
  result.original_context = integer_or(rope, "original_max_position_embeddings", 1, most_context, context);
  if (type == "linear") {
    result.kind = RopeConfig::Kind::linear;
  } else if (type == "llama3") {
    result.kind = RopeConfig::Kind::llama3;
    result.low_freq_factor = positive(rope, "low_freq_factor", 1);
    result.high_freq_factor = positive(rope, "high_freq_factor", 4);
    if (result.high_freq_factor <= result.low_freq_factor) {
      throw InputError(fmt::format("\"high_freq_factor\" is {}; it must be above \"low_freq_factor\", {}",
                                   result.high_freq_factor, result.low_freq_factor));
    }
  } else {
    result.kind = RopeConfig::Kind::yarn;
    result.beta_fast = positive(rope, "beta_fast", 32);
    result.beta_slow = positive(rope, "beta_slow", 1);
    result.truncate = boolean_or(rope, "truncate", true);
    result.attention_factor = yarn_attention_factor(rope, result.factor);
  }
  return result;
}

// Sliding windows: mistral gives one for all layers; qwen2 and qwen3 one for the layers from
// max_window_layers on, or layer_types.
std::vector<int> parse_windows(const json& config, const std::string& family, int layers) {
  std::vector<int> windows(layers, 0);
  const bool qwen = family == "qwen2" || family == "qwen3";
  if (!find(config, "sliding_window") || family == "llama") return windows;
  if (qwen && !boolean_or(config, "use_sliding_window", false)) return windows;
  const int window = integer(config, "sliding_window", 1, INT32_MAX);
  const int first = qwen ? integer_or(config, "max_window_layers", 0, most_layers, 28) : 0;
  const json* types = find(config, "layer_types");
  if (types && (!types->is_array() || static_cast<int>(types->size()) != layers)) {
    throw InputError(fmt::format("\"layer_types\" is not a list of {} layers", layers));
  }
  for (int layer = 0; layer < layers; ++layer) {
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

// "quantization" of mlx-community; "quantization_config" alone is some other scheme's.
std::optional<Quantisation> parse_quantisation(const json& config) {
  const json* given = find(config, "quantization");
  if (!given) {
    if (find(config, "quantization_config")) {
      throw InputError(
          "\"quantization_config\" is of a kind that this version does not read; give MLX's affine "
          "quantization, or a bf16, f16 or f32 checkpoint");
    }
    return std::nullopt;
  }
  if (!given->is_object())
    throw InputError(fmt::format("\"quantization\" is {}; give an object", given->dump()));
  for (const auto& [name, value] : given->items()) {
    if (value.is_object() || value.is_boolean()) {
      throw InputError(fmt::format(
          "\"quantization\" has a rule of its own for \"{}\", which this version does not read", name));
    }
  }
  const std::string mode = string_or(*given, "mode", "affine");
  if (mode != "affine") {
    throw InputError(fmt::format("\"quantization\" has the mode \"{}\"; this version reads affine", mode));
  }
  const Quantisation result{integer(*given, "bits", 1, 32), integer(*given, "group_size", 1, 1 << 20)};
  if (result.bits != 4 && result.bits != 8) {
    throw InputError(fmt::format("\"quantization\" has {} bits; this version reads 4 and 8", result.bits));
  }
  if (result.group != 32 && result.group != 64 && result.group != 128) {
    throw InputError(
        fmt::format("\"quantization\" has groups of {}; this version reads 32, 64 and 128", result.group));
  }
  return result;
}

// The cuts that leave each group of inputs whole; InputError where a matrix has no whole groups.
void align_cuts(parallel::ModelSizes& sizes, int group) {
  sizes.heads_at_once = group / std::gcd(sizes.head_dim, group);
  sizes.columns_at_once = group;
  const auto check = [&](const char* name, int inputs) {
    if (inputs % group == 0) return;
    throw InputError(
        fmt::format("{} is {}, not a multiple of the quantization's groups of {}", name, inputs, group));
  };
  check("\"hidden_size\"", sizes.hidden);
  check("\"intermediate_size\"", sizes.ffn);
  check("the width of all query heads", sizes.query_heads * sizes.head_dim);
}

void reject_unsupported(const json& config) {
  const std::string activation = string_or(config, "hidden_act", "silu");
  if (activation != "silu")
    throw InputError(fmt::format("\"hidden_act\" is \"{}\"; only silu is supported", activation));
}

}  // namespace

ModelConfig parse_config(const json& config) {
  ModelConfig result;
  result.family = string_or(config, "model_type", "");
  const bool qwen2 = result.family == "qwen2", qwen3 = result.family == "qwen3";
  if (result.family != "llama" && result.family != "mistral" && !qwen2 && !qwen3) {
    throw InputError(fmt::format(
        "\"model_type\" is \"{}\"; this version runs llama, mistral, qwen2 and qwen3", result.family));
  }
  reject_unsupported(config);
  result.layers = integer(config, "num_hidden_layers", 1, most_layers);
  auto& sizes = result.sizes;
  sizes.hidden = integer(config, "hidden_size", 1, most_width);
  sizes.query_heads = integer(config, "num_attention_heads", 1, most_width);
  sizes.kv_heads = integer_or(config, "num_key_value_heads", 1, most_width, sizes.query_heads);
  sizes.head_dim = integer_or(config, "head_dim", 2, most_width, sizes.hidden / sizes.query_heads);
  sizes.ffn = integer(config, "intermediate_size", 1, most_width);
  sizes.vocabulary = integer(config, "vocab_size", 1, most_vocabulary);
  if (sizes.query_heads % sizes.kv_heads != 0) {
    throw InputError(
        fmt::format("\"num_attention_heads\" is {}, not a multiple of \"num_key_value_heads\", {}",
                    sizes.query_heads, sizes.kv_heads));
  }
  if (sizes.head_dim < 2 || sizes.head_dim % 2 != 0) {
    throw InputError(fmt::format("the head size is {}; rotary embedding needs an even one", sizes.head_dim));
  }
  if (static_cast<std::int64_t>(sizes.query_heads) * sizes.head_dim > most_width) {
    throw InputError(
        fmt::format("{} heads of {} are wider than {}", sizes.query_heads, sizes.head_dim, most_width));
  }
  result.context = integer_or(config, "max_position_embeddings", 1, most_context, 2048);
  result.rms_norm_eps = static_cast<float>(positive(config, "rms_norm_eps", 1e-6));
  result.rope = parse_rope(config, result.context);
  result.windows = parse_windows(config, result.family, result.layers);
  result.tied_embeddings = boolean_or(config, "tie_word_embeddings", false);
  result.separate_output = !result.tied_embeddings;
  result.qkv_bias = qwen2 || boolean_or(config, "attention_bias", false);
  result.output_bias = !qwen2 && boolean_or(config, "attention_bias", false);
  result.mlp_bias = result.family == "llama" && boolean_or(config, "mlp_bias", false);
  result.query_key_norm = qwen3;
  result.quantisation = parse_quantisation(config);
  if (result.quantisation) align_cuts(sizes, result.quantisation->group);
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
