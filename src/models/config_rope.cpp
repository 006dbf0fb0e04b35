#include "models/config_fields.h"

namespace tandem::models {
namespace {

using nlohmann::json;

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

}  // namespace

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

}  // namespace tandem::models
