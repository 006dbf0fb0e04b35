#include "models/quantized_layout.h"

#include <fmt/format.h>
#include <fnmatch.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "models/families.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;
using parallel::Dim;

constexpr std::string_view weight_ending = ".weight";
constexpr int as_it_is = 16;  // bits

// What stands in for an expert's number where a pattern is compared with the names of the model.
constexpr const char* any_expert = "*";

std::string replaced(std::string text, std::string_view what, std::string_view with) {
  const auto at = text.find(what);
  return at == std::string::npos ? text : text.replace(at, what.size(), with);
}

mx::Dtype mlx_dtype(const std::string& dtype) {
  if (dtype == "F32") return mx::float32;
  return dtype == "F16" ? mx::float16 : mx::bfloat16;
}

// Rows of the layout, from those of the shard table.
class LayoutMaker {
 public:
  LayoutMaker(const ModelConfig& config, const weights::Checkpoint& source, const QuantizeOptions& options)
      : config_(config),
        source_(source),
        options_(options),
        whole_(parallel::shard_of(config.sizes, {1.0}, 0)),
        rules_(shard_rules(config, source, {0, config.layers})),
        fits_(options.keep.size(), false) {}

  std::vector<LaidOut> make() {
    const auto of_layer = [](const weights::ShardRule& rule) {
      return rule.name.find('*') != std::string::npos;
    };
    const auto add_single = [&](std::string_view name) {
      for (const auto& rule : rules_) {
        if (rule.name == name) add(rule, rule.name);
      }
    };
    add_single("model.embed_tokens.weight");
    for (int layer = 0; layer < config_.layers; ++layer) {
      for (const auto& rule : rules_) {
        const auto& layers = rule.layers;
        if (!of_layer(rule)) continue;
        if (!layers.empty() && std::find(layers.begin(), layers.end(), layer) == layers.end()) continue;
        add(rule, replaced(rule.name, "*", std::to_string(layer)));
      }
    }
    add_single("model.norm.weight");
    add_single("lm_head.weight");
    check_patterns();
    return std::move(layout_);
  }

 private:
  // `name` has a star where an expert's number is to stand.
  void add(const weights::ShardRule& rule, const std::string& name) {
    LaidOut tensor{.name = name, .sources = {name}};
    for (const auto dim : rule.shape) tensor.shape.push_back(whole_.whole(dim));
    if (name.find(any_expert) != std::string::npos) {
      tensor.name = replaced(name, std::string("experts.") + any_expert, "switch_mlp");
      tensor.sources.clear();
      for (int e = 0; e < config_.sizes.experts; ++e)
        tensor.sources.push_back(replaced(name, any_expert, std::to_string(e)));
      tensor.shape.insert(tensor.shape.begin(), config_.sizes.experts);
    }
    if (config_.family == "deepseek_v3" && name.ends_with("kv_b_proj.weight")) {
      const auto& sizes = config_.sizes;
      const int nope = whole_.whole(Dim::nope);
      tensor.name = replaced(name, "kv_b_proj", "embed_q");
      tensor.part = LaidOut::Part::keys;
      tensor.shape = {sizes.query_heads, sizes.latent, nope};
      finish(tensor, name);
      tensor.name = replaced(name, "kv_b_proj", "unembed_out");
      tensor.part = LaidOut::Part::values;
      tensor.shape = {sizes.query_heads, sizes.value_dim, sizes.latent};
    }
    finish(tensor, name);
  }

  // Adds it once dtype and format are known.
  void finish(LaidOut tensor, const std::string& model_name) {
    for (const auto& name : tensor.sources) check_format(name);
    const std::string& dtype = source_.info(tensor.sources.front()).dtype;
    tensor.dtype = dtype == "F8_E4M3" ? "BF16" : dtype;
    const bool router = tensor.name.ends_with(".mlp.gate.weight");
    if (tensor.matrix() && !router) {
      const int bits = bits_of(tensor, model_name), group = options_.quantisation.group;
      tensor.indivisible = bits != as_it_is && tensor.shape.back() % group != 0;
      if (bits != as_it_is && !tensor.indivisible) tensor.quantisation = weights::Quantisation{bits, group};
    }
    layout_.push_back(std::move(tensor));
  }

  void check_format(const std::string& name) const {
    const std::string& dtype = source_.info(name).dtype;
    if (dtype == "F8_E4M3" && config_.formats.fp8_block > 0) {
      source_.info(name + "_scale_inv");
    } else if (dtype != "F32" && dtype != "F16" && dtype != "BF16") {
      throw InputError(
          fmt::format("tensor \"{}\" is {}; quantize reads F32, F16, BF16 and DeepSeek's FP8", name, dtype));
    }
  }

  int bits_of(const LaidOut& tensor, const std::string& model_name) {
    int bits = options_.quantisation.bits;
    for (std::size_t i = 0; i < options_.keep.size(); ++i) {
      const auto matches = [&](const std::string& name) {
        const std::string stem = name.substr(0, name.size() - weight_ending.size());
        const char* pattern = options_.keep[i].pattern.c_str();
        return ::fnmatch(pattern, stem.c_str(), 0) == 0 || ::fnmatch(pattern, name.c_str(), 0) == 0;
      };
      if (!matches(tensor.name) && !matches(model_name)) continue;
      bits = options_.keep[i].bits;
      fits_[i] = true;
    }
    return bits;
  }

  void check_patterns() const {
    for (std::size_t i = 0; i < fits_.size(); ++i) {
      if (fits_[i]) continue;
      throw InputError(fmt::format(
          "--keep: no matrix that could be quantized has a name like \"{}\"; names are such as {}",
          options_.keep[i].pattern, example()));
    }
  }

  std::string example() const {
    for (const auto& tensor : layout_) {
      if (tensor.quantisation && tensor.name.find("layers") != std::string::npos) return tensor.stem();
    }
    return "lm_head";
  }

  const ModelConfig& config_;
  const weights::Checkpoint& source_;
  const QuantizeOptions& options_;
  const parallel::Shard whole_;
  const std::vector<weights::ShardRule> rules_;
  std::vector<bool> fits_;
  std::vector<LaidOut> layout_;
};

}  // namespace

std::string LaidOut::stem() const {
  return name.ends_with(weight_ending) ? name.substr(0, name.size() - weight_ending.size()) : name;
}

std::uint64_t LaidOut::piece_bytes() const {
  return weights::TensorSpec{name, dtype, shape}.bytes() / sources.size();
}

std::vector<weights::TensorSpec> LaidOut::tensors() const {
  if (!quantisation) return {{name, dtype, shape}};
  auto codes = shape, scales = shape;
  codes.back() = shape.back() * quantisation->bits / 32;
  scales.back() = shape.back() / quantisation->group;
  return {{name, "U32", codes}, {stem() + ".scales", dtype, scales}, {stem() + ".biases", dtype, scales}};
}

std::uint64_t LaidOut::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& tensor : tensors()) sum += tensor.bytes();
  return sum;
}

std::vector<LaidOut> quantized_layout(const ModelConfig& config, const weights::Checkpoint& source,
                                      const QuantizeOptions& options) {
  if (config.formats.all) {
    throw InputError(fmt::format(
        "the model is quantized already, {} bit in groups of {}: quantizing it again would add a second "
        "error to the first; give the original",
        config.formats.all->bits, config.formats.all->group));
  }
  return LayoutMaker(config, source, options).make();
}

std::vector<std::vector<LaidOut>> cut_into_shards(const std::vector<LaidOut>& layout,
                                                  std::uint64_t max_bytes) {
  std::vector<std::vector<LaidOut>> shards;
  std::uint64_t shard_bytes = 0;
  for (const auto& tensor : layout) {
    if (shards.empty() || shard_bytes + tensor.bytes() > max_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(tensor);
    shard_bytes += tensor.bytes();
  }
  return shards;
}

mx::array take_piece(const ModelConfig& config, const weights::ShardedWeights& weights, const LaidOut& tensor,
                     const std::string& source) {
  const mx::Device cpu = mx::Device::cpu;
  mx::array piece = tensor.matrix() ? weights.take_matrix(source).weight : weights.take(source);
  const int nope = config.sizes.head_dim - config.sizes.rope;
  if (tensor.part == LaidOut::Part::keys) piece = keys_by_head(piece, nope, config.sizes.value_dim);
  if (tensor.part == LaidOut::Part::values) piece = values_by_head(piece, nope, config.sizes.value_dim);
  piece = mx::astype(piece, mlx_dtype(tensor.dtype), cpu);
  piece.eval();
  return piece;
}

nlohmann::json quantized_config(nlohmann::json config, const std::vector<LaidOut>& layout,
                                const weights::Quantisation& quantisation) {
  const auto describe = [](const weights::Quantisation& q) {
    return nlohmann::json{{"group_size", q.group}, {"bits", q.bits}, {"mode", "affine"}};
  };
  auto described = describe(quantisation);
  for (const auto& tensor : layout) {
    if (tensor.quantisation && tensor.quantisation->bits != quantisation.bits)
      described[tensor.stem()] = describe(*tensor.quantisation);
  }
  config["quantization"] = described;
  config["quantization_config"] = described;
  if (const auto rope = config.find("rope_parameters"); rope != config.end() && rope->is_object()) {
    if (rope->contains("rope_theta") && !config.contains("rope_theta"))
      config["rope_theta"] = (*rope)["rope_theta"];
    if (rope->value("rope_type", "default") != "default" && !config.contains("rope_scaling"))
      config["rope_scaling"] = config["rope_parameters"];
  }
  return config;
}

}  // namespace tandem::models
