#include "train/full_model.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>

#include "models/loading.h"
#include "train/parts.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

// Whether each rank's gradient of a tensor that all hold is a part of the sum: where it stands between the
// input that the ranks share and the sum of their results (a bias after that is whole).
bool is_partial(const weights::ShardedWeights& weights, const std::string& name) {
  if (weights.slice_of(name).axis >= 0) return false;
  const bool inside = name.find(".self_attn.") != name.npos || name.find(".mlp.") != name.npos;
  const std::string matrix = name.substr(0, name.rfind('.')) + ".weight";
  const bool after_sum = name.ends_with(".bias") && weights.reduce_of(matrix) == parallel::Reduce::sum;
  return inside && !after_sum;
}

// Where a part of a tensor lies in it: a quantised matrix's own slice counts words of several numbers.
weights::Slice dense_slice(weights::Slice slice, const mx::array& part) {
  const int in_a_word = part.shape(-1) / slice.part_shape().back();
  slice.shape.back() *= in_a_word;
  if (slice.axis + 1 == static_cast<int>(slice.shape.size()))
    slice.part = {slice.part.begin * in_a_word, slice.part.end * in_a_word};
  slice.element = weights::Element::number;
  return slice;
}

// Of rows that are not enough for every rank nothing is cut off.
void cut(Parameter& parameter, const models::Group& sharers) {
  const int rows = parameter.value.shape(0), each = rows_each(rows, sharers.size());
  parameter.slice.axis = -1;
  if (parameter.value.ndim() < 2 || each * (sharers.size() - 1) >= rows) return;
  parameter.slice.axis = 0;
  parameter.slice.part = {each * sharers.rank(), std::min(rows, each * (sharers.rank() + 1))};
  parameter.value = mx::contiguous(weights::sliced(parameter.value, parameter.slice));
  parameter.value.eval();
  parameter.partial = false;
  parameter.scattered = true;
}

}  // namespace

FullModel::FullModel(models::ModelConfig config, parallel::Shard shard, parallel::Range layers,
                     weights::ShardedWeights weights, mx::Dtype activations, bool balanced,
                     const std::optional<models::Group>& sharers)
    : config_(std::move(config)),
      shard_(std::move(shard)),
      layers_(layers),
      weights_(std::move(weights)),
      activations_(activations) {
  for (const auto& name : weights_.names()) {
    mx::array value = mx::astype(models::dense(weights_.take_matrix(name)), mx::float32);
    value.eval();
    weights::Slice slice = dense_slice(weights_.slice_of(name), value);
    Parameter one{std::move(slice), std::move(value), is_partial(weights_, name)};
    const bool embedding = name == "model.embed_tokens.weight";
    one.tied = embedding && config_.tied_embeddings && layers_.size() < config_.layers;
    one.looked_up = embedding && !config_.tied_embeddings;
    one.balances = is_router_bias(name);
    if (sharers) cut(one, *sharers);
    (one.balances && !balanced ? fixed_ : parameters_).push_back(std::move(one));
  }
}

mx::array FullModel::in_use(const std::string& name, const mx::array& value) const {
  const bool chooses = is_router(name) || is_router_bias(name);  // float32 on every device
  return chooses ? value : mx::astype(value, activations_);
}

TrainedModel FullModel::model(const std::vector<mx::array>& values) {
  std::map<std::string, mx::array> bound;
  for (const auto& one : fixed_) bound.emplace(one.slice.name, one.value);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::string& name = parameters_[i].slice.name;
    bound.emplace(name, in_use(name, values[i]));
  }
  weights_.bind(std::move(bound));
  return models::make_decoder(config_, shard_, weights_, layers_);
}

}  // namespace tandem::train
