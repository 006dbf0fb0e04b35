#include "train/lora.h"

#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cmath>

#include "base/hash.h"
#include "models/adapter.h"
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
  for (auto& layer : base_.layers)
    models::for_each_linear(layer, [&](auto& linear) { products_.insert(key_of(linear.name)); });
  for_each_adapted(base_, [&](auto& linear) { add(linear, weights.slice_of(linear.name + ".weight")); });
}

void LoraModel::for_each_adapted(models::Decoder& model,
                                 const std::function<void(models::ShardedLinear&)>& visit) const {
  const auto& keys = options_.keys;
  const int first = options_.layers < 1 ? 0 : model.config.layers - options_.layers;
  for (int i = 0; i < static_cast<int>(model.layers.size()); ++i) {
    if (first_layer_ + i < first) continue;
    models::for_each_linear(model.layers[i], [&](auto& linear) {
      if (keys.empty() || std::find(keys.begin(), keys.end(), key_of(linear.name)) != keys.end())
        visit(linear);
    });
  }
}

void LoraModel::add(const models::ShardedLinear& linear, const weights::Slice& slice) {
  const auto slices = models::adapter_slices(linear, slice, options_.rank);
  const int in = slices.down.shape[0], rank = options_.rank;
  const float bound = 1 / std::sqrt(static_cast<float>(in));
  const mx::array whole =
      mx::random::uniform(-bound, bound, {in, rank}, mx::float32,
                          mx::random::key(fnv1a(slices.down.name, options_.seed)), mx::Device::cpu);
  parameters_.push_back({slices.down, models::part_of(whole, slices.down), slices.down.axis < 0});
  parameters_.push_back({slices.up,
                         models::part_of(mx::zeros({rank, slices.up.shape[1]}, mx::float32), slices.up),
                         slices.up.axis < 0});
  if (!options_.dora) return;
  squares_.push_back(kernels::row_squares(linear.weight));
  parameters_.push_back({slices.magnitude, mx::zeros_like(squares_.back()), slices.magnitude.axis < 0});
}

void LoraModel::start_magnitudes() {
  std::size_t next = 0;
  for_each_adapted(base_, [&](auto& linear) {
    if (!options_.dora) return;
    mx::array sum = squares_[next];
    if (linear.reduce == parallel::Reduce::sum) sum = parallel::sum(sum, group_);
    auto& magnitude = parameters_[next * 3 + 2].value;
    magnitude = mx::sqrt(sum);
    magnitude.eval();
    ++next;
  });
}

models::Decoder LoraModel::model(const std::vector<mx::array>& values) {
  models::Decoder model = base_;
  std::size_t next = 0, products = 0;
  for_each_adapted(model, [&](auto& linear) {
    const auto turned = [&](const mx::array& x) {
      return kernels::Matrix{mx::transpose(mx::astype(x, options_.activations)), {}, {}};
    };
    linear.adapter = models::Adapter{turned(values[next]), turned(values[next + 1]), options_.scale};
    next += 2;
    if (!options_.dora) return;
    const mx::array norms =
        mx::stop_gradient(models::adapted_norms(linear, squares_[products++], group_));
    linear.adapter->gain = mx::divide(values[next++], norms);
  });
  return model;
}

}  // namespace tandem::train
