#include "train/lora.h"

#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cmath>

#include "base/hash.h"
#include "models/adapter_files.h"
#include "models/visit.h"
#include "parallel/collectives.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

// "model.layers.3.self_attn.q_proj" → "self_attn.q_proj".
std::string key_of(const std::string& name) {
  const std::string prefix = "model.layers.";
  return name.substr(name.find('.', prefix.size()) + 1);
}

}  // namespace

LoraModel::LoraModel(models::Decoder base, int first_layer, const weights::ShardedWeights& weights,
                     models::Group group, const LoraOptions& options)
    : base_(std::move(base)), first_layer_(first_layer), group_(std::move(group)), options_(options) {
  for (auto& layer : base_.layers) {
    models::for_each_linear(layer, [&](auto& linear) { products_.insert(key_of(linear.name)); });
    models::for_each_experts(layer, [&](auto& experts) { products_.insert(key_of(experts.place.name)); });
  }
  for_each_adapted(
      base_,
      [&](auto& linear) {
        const auto slices =
            models::adapter_slices(linear, weights.slice_of(linear.name + ".weight"), options_.rank);
        add(slices, slices.down.shape[0]);
        if (!options_.dora) return;
        squares_.push_back(kernels::row_squares(linear.weight));
        parameters_.push_back({slices.magnitude, mx::zeros_like(squares_.back()), slices.magnitude.axis < 0});
      },
      [&](auto& experts) { add(models::adapter_slices(experts, options_.rank), experts.place.shape[2]); });
}

void LoraModel::for_each_adapted(models::Decoder& model,
                                 const std::function<void(models::ShardedLinear&)>& visit_linear,
                                 const std::function<void(models::ShardedExperts&)>& visit_experts) const {
  const auto& keys = options_.keys;
  const auto named = [&](const std::string& name) {
    return std::find(keys.begin(), keys.end(), key_of(name)) != keys.end();
  };
  const int first = options_.layers < 1 ? 0 : model.config.layers - options_.layers;
  for (int i = 0; i < static_cast<int>(model.layers.size()); ++i) {
    if (first_layer_ + i < first) continue;
    models::for_each_linear(model.layers[i], [&](auto& linear) {
      if (keys.empty() || named(linear.name)) visit_linear(linear);
    });
    if (options_.dora) continue;
    models::for_each_experts(model.layers[i], [&](auto& experts) {
      if (named(experts.place.name)) visit_experts(experts);
    });
  }
}

void LoraModel::add(const models::AdapterSlices& slices, int in) {
  const auto& [down, up, magnitude] = slices;
  const float bound = 1 / std::sqrt(static_cast<float>(in));
  const mx::array first =
      mx::random::uniform(-bound, bound, {down.shape.begin(), down.shape.end()}, mx::float32,
                          mx::random::key(fnv1a(down.name, options_.seed)), mx::Device::cpu);
  const mx::array nothing = mx::zeros({up.shape.begin(), up.shape.end()}, mx::float32);
  parameters_.push_back({down, models::part_of(first, down), down.axis < 0});
  parameters_.push_back({up, models::part_of(nothing, up), up.axis < 0});
}

void LoraModel::start_magnitudes() {
  if (!options_.dora) return;
  std::size_t next = 0;
  const auto start = [&](const models::ShardedLinear& linear) {
    const mx::array& own = squares_[next];
    auto& magnitude = parameters_[next * 3 + 2].value;  // after lora_a and lora_b
    magnitude = mx::sqrt(linear.reduce == parallel::Reduce::sum ? parallel::sum(own, group_) : own);
    magnitude.eval();
    ++next;
  };
  for_each_adapted(base_, start, [](auto&) {});
}

TrainedModel LoraModel::model(const std::vector<mx::array>& values) {
  models::Decoder model = base_;
  std::size_t next = 0, products = 0;
  const auto take = [&] { return mx::astype(values[next++], options_.activations); };
  const auto adapt_linear = [&](models::ShardedLinear& linear) {
    const mx::array down = mx::transpose(take()), up = mx::transpose(take());
    linear.adapter = models::Adapter{{down, {}, {}}, {up, {}, {}}, options_.scale};
    if (!options_.dora) return;
    const mx::array norms = models::adapted_norms(linear, squares_[products++], group_);
    linear.adapter->gain = mx::divide(values[next++], mx::stop_gradient(norms));
  };
  const auto adapt_experts = [&](models::ShardedExperts& experts) {
    const mx::array down = take(), up = take();
    experts.adapter = models::ExpertsAdapter{{down, {}, {}}, {up, {}, {}}, options_.scale};
  };
  for_each_adapted(model, adapt_linear, adapt_experts);
  return model;
}

}  // namespace tandem::train
