#include "train/sharded_model.h"

#include <mlx/ops.h>

#include "models/loading.h"
#include "train/parts.h"

namespace tandem::train {

namespace mx = mlx::core;

ShardedModel::ShardedModel(const models::ModelConfig& config, parallel::Shard shard,
                           weights::ShardedWeights weights, mx::Dtype activations, bool balanced,
                           models::Group sharers)
    : FullModel(config, std::move(shard), {0, config.layers}, std::move(weights), activations, balanced,
                sharers),
      sharers_(std::move(sharers)),
      layer_places_(static_cast<std::size_t>(config_.layers)) {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const std::string& name = parameters_[i].slice.name;
    const int layer = layer_of(name);
    auto& places = layer >= 0                            ? layer_places_[static_cast<std::size_t>(layer)]
                   : name == "model.embed_tokens.weight" ? embedding_places_
                                                         : output_places_;
    places.push_back(i);
  }
}

std::vector<mx::array> ShardedModel::of(const Places& places, const std::vector<mx::array>& values) const {
  std::vector<mx::array> found;
  for (const auto place : places) found.push_back(values[place]);
  return found;
}

void ShardedModel::bind(const Places& places, const std::vector<mx::array>& parts, const mx::array& input,
                        parallel::InOrder order) {
  std::vector<mx::array> flat;  // as many rows of each from every rank
  const auto rows_of = [&](const weights::Slice& slice) {
    return rows_each(slice.shape[0], sharers_.size());
  };
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Parameter& parameter = parameters_[places[i]];
    if (!parameter.scattered) continue;
    std::vector<std::pair<int, int>> around(parts[i].ndim(), {0, 0});
    around[0].second = rows_of(parameter.slice) - parts[i].shape(0);
    flat.push_back(mx::reshape(around[0].second > 0 ? mx::pad(parts[i], around) : parts[i], {-1}));
  }
  const int ranks = sharers_.size();
  mx::array all(0.0F);
  if (!flat.empty()) all = mx::reshape(order.gather(mx::concatenate(flat), input), {ranks, -1});
  std::map<std::string, mx::array> bound;
  int first = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto& slice = parameters_[places[i]].slice;
    mx::array whole = parts[i];
    if (parameters_[places[i]].scattered) {
      mx::Shape shape(slice.shape.begin(), slice.shape.end());
      const int end = first + rows_of(slice) * static_cast<int>(whole.size() / whole.shape(0));
      shape[0] = rows_of(slice) * ranks;
      const mx::array rows = mx::reshape(mx::slice(all, {0, first}, {ranks, end}), shape);
      shape[0] = slice.shape[0];
      whole = mx::slice(rows, mx::Shape(shape.size(), 0), shape);
      first = end;
    }
    bound.emplace(slice.name, in_use(slice.name, whole));
  }
  for (const auto& one : fixed_) bound.emplace(one.slice.name, one.value);
  weights_.bind(std::move(bound));
}

TrainedModel ShardedModel::model(const std::vector<mx::array>& values) {
  const parallel::InOrder order(sharers_);
  TrainedModel trained = models::without_weights(config_, shard_);
  bind(embedding_places_, of(embedding_places_, values), mx::array(0.0F), order);
  trained.decoder.embedding = models::take_linear(weights_, "model.embed_tokens");
  MadeLayers made;
  for (const auto& places : layer_places_) made.weights.push_back(of(places, values));
  made.layer = [this, order](int layer, const std::vector<mx::array>& parts, const mx::array& input) {
    bind(layer_places_[static_cast<std::size_t>(layer)], parts, input, order);
    return models::take_layer(config_, shard_, weights_, layer);
  };
  made.add_output = [this, order, parts = of(output_places_, values)](models::Decoder& model,
                                                                      const mx::array& input) {
    bind(output_places_, parts, input, order);
    models::take_output(config_, shard_, weights_, model);
  };
  trained.made = std::move(made);
  return trained;
}

}  // namespace tandem::train
