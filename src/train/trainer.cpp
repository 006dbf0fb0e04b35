#include "train/trainer.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <numeric>

#include "parallel/collectives.h"
#include "parallel/tcp_group.h"
#include "train/data.h"
#include "train/parts.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

// Parameters in the order in which a backward has their gradients: the output's, the last layer's, …
std::vector<std::size_t> as_they_come(const std::vector<Parameter>& parameters) {
  const auto depth = [&](std::size_t i) {
    const std::string& name = parameters[i].slice.name;
    const int layer = layer_of(name);
    return layer >= 0 ? layer : name.starts_with("model.embed_tokens") ? -1 : INT_MAX;
  };
  std::vector<std::size_t> order(parameters.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return depth(a) > depth(b); });
  return order;
}

}  // namespace

Trainer::Trainer(std::unique_ptr<Trainable> trainable, Ranks ranks, const TrainerOptions& options)
    : trainable_(std::move(trainable)),
      ranks_(std::move(ranks)),
      options_(options),
      optimizer_(options.optimizer, trainable_->slices(), ranks_.parts()),
      loss_scale_{options.loss_scale, 0} {
  // A group takes one collective at a time, and a model's own are on the default stream.
  if (ranks_.parts().size() == 1 && mx::default_device() == mx::Device::cpu)
    link_ = mx::new_stream(mx::Device::cpu);
  if (ranks_.place.stages > 1)
    pipeline_.emplace(ranks_.world, ranks_.place, ranks_.stage, trainable_->hidden(), options.recompute);
}

std::vector<Sequence> Trainer::own(const std::vector<Sequence>& sequences) const {
  std::vector<Sequence> found = part_of(sequences, ranks_.shares, ranks_.data.rank());
  // A rank with nothing to compute still has parts of matrices to give.
  if (ranks_.sharded && input_rows(found) == 0) found.push_back({{0, 0}, /*loss_from=*/2});
  return found;
}

// The sums over the ranks that compute parts of them.
std::vector<mx::array> Trainer::reduced(std::vector<mx::array> gradients) const {
  const auto& parameters = trainable_->parameters();
  if (ranks_.sharded) mx::eval(gradients);  // with their own collectives
  parallel::InOrder sums(ranks_.data, link_);
  for (const std::size_t i : as_they_come(parameters)) {
    if (parameters[i].partial) gradients[i] = parallel::sum(gradients[i], ranks_.stage.group);
    if (!parameters[i].scattered) gradients[i] = sums.sum(gradients[i]);
  }
  return gradients;
}

// Of the whole model: what several ranks hold counts once.
double Trainer::norm_of(const std::vector<mx::array>& gradients) const {
  const auto& parameters = trainable_->parameters();
  const auto ranks = static_cast<float>(ranks_.parts().size());
  mx::array sum(0.0F);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (parameters[i].balances || (parameters[i].tied && ranks_.place.last())) continue;
    const mx::array squares = mx::sum(mx::square(gradients[i]));
    sum = mx::add(sum, parameters[i].slice.axis < 0 ? mx::divide(squares, mx::array(ranks)) : squares);
  }
  sum = parallel::sum(sum, pipeline_ ? ranks_.world : ranks_.parts());
  return std::sqrt(sum.item<float>());
}

// Of all ranks, from those that computed it.
double Trainer::total(const mx::array& nll) const {
  if (!pipeline_) return parallel::sum(nll, ranks_.data).item<float>();
  const bool has_it = ranks_.place.last() && ranks_.place.rank == 0;
  return parallel::sum(has_it ? nll : mx::array(0.0F), ranks_.world).item<float>();
}

void Trainer::adapt_loss_scale(bool finite) {
  auto& [scale, steps] = loss_scale_;
  if (!finite || ++steps == loss_scale_steps) {
    if (scale > 0) scale = std::clamp(finite ? scale * 2 : scale / 2, 1.0F, largest_loss_scale);
    steps = 0;
  }
}

// By one micro-batch after the other, the last one's gradients summed over ranks as they come.
Sums Trainer::sums_of(const std::vector<std::vector<Sequence>>& micro_batches, float scale) {
  std::vector<int> wanted(trainable_->parameters().size());
  std::iota(wanted.begin(), wanted.end(), 0);
  Sums sums{mx::array(0.0F), {}};
  for (const auto& batch : micro_batches) {
    const auto sequences = own(batch);
    const bool idle = scored_tokens(sequences) == 0;  // a row that is made up chooses experts too
    models::Context stage = ranks_.stage;
    stage.balance_loss *= scale;
    const auto loss = [&](const std::vector<mx::array>& values) {
      const mx::array sum = summed_nll(trainable_->model(values), sequences, stage, options_.recompute);
      return scale == 1 ? sum : mx::multiply(sum, mx::array(scale));
    };
    const auto values = trainable_->values();
    auto [sum, found] = mx::value_and_grad(loss, wanted)(values);
    for (std::size_t i = 0; idle && i < found.size(); ++i)
      if (trainable_->parameters()[i].balances) found[i] = mx::zeros_like(found[i]);
    for (std::size_t i = 0; i < sums.gradients.size(); ++i) found[i] = mx::add(sums.gradients[i], found[i]);
    const bool last = &batch == &micro_batches.back();
    sums.gradients = last ? reduced(std::move(found)) : std::move(found);
    sums.nll = mx::add(sums.nll, sum);
    // The last layers' come first, so that their sums over ranks are under way while the others are computed.
    std::vector<mx::array> all(sums.gradients.rbegin(), sums.gradients.rend());
    all.push_back(sums.nll);
    mx::eval(all);
  }
  return sums;
}

Sums Trainer::staged_sums(const std::vector<std::vector<Sequence>>& micro_batches, float scale) {
  std::vector<std::vector<Sequence>> parts;
  for (const auto& batch : micro_batches)
    for (auto& part : parts_for(ranks_.place.stages, batch)) parts.push_back(std::move(part));
  Sums sums = pipeline_->run(*trainable_, parts, scale);
  if (parts.empty())
    for (const auto& value : trainable_->values()) sums.gradients.push_back(mx::zeros_like(value));
  sums.gradients = reduced(std::move(sums.gradients));
  add_tied(sums.gradients);
  mx::eval(sums.gradients);
  return sums;
}

// Embeddings that are the output matrix too: the sum of the first and the last stage's gradients.
void Trainer::add_tied(std::vector<mx::array>& gradients) const {
  const auto& place = ranks_.place;
  if (!place.first() && !place.last()) return;
  const auto& parameters = trainable_->parameters();
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (!parameters[i].tied) continue;
    const mx::array own = mx::contiguous(gradients[i]);
    mx::array others = mx::zeros_like(own, mx::Device::cpu);
    mx::eval(own, others);
    const int peer = place.first() ? place.leaders.back() + place.rank : place.rank;
    parallel::exchange(ranks_.world, {{peer, std::span<const char>(own.data<char>(), own.nbytes()),
                                       std::span(others.data<char>(), others.nbytes())}});
    gradients[i] = place.first() ? mx::add(own, others) : mx::add(others, own);
  }
}

StepResult Trainer::step(const std::vector<std::vector<Sequence>>& micro_batches, double learning_rate) {
  StepResult result;
  const float scale = loss_scale_.scale > 0 ? loss_scale_.scale : 1;
  for (const auto& batch : micro_batches) result.tokens += scored_tokens(batch);
  auto [nll, gradients] = pipeline_ ? staged_sums(micro_batches, scale) : sums_of(micro_batches, scale);
  result.sum_nll = total(nll) / scale;
  const double mean = 1.0 / std::max(1, result.tokens) / scale;
  result.gradient_norm = norm_of(gradients) * mean;
  result.skipped = !std::isfinite(result.gradient_norm) || !std::isfinite(result.sum_nll);
  adapt_loss_scale(!result.skipped);
  if (result.skipped || result.tokens == 0) return result;
  const double clipped =
      options_.clip > 0 && result.gradient_norm > options_.clip ? options_.clip / result.gradient_norm : 1;
  auto& parameters = trainable_->parameters();
  for (std::size_t i = 0; i < gradients.size(); ++i)
    if (!parameters[i].balances)
      gradients[i] = mx::multiply(gradients[i], mx::array(static_cast<float>(mean * clipped)));
  auto values = optimizer_.step(trainable_->values(), gradients, learning_rate);
  for (std::size_t i = 0; i < values.size(); ++i) parameters[i].value = std::move(values[i]);
  return result;
}

StepResult Trainer::evaluate(const std::vector<Sequence>& sequences) {
  StepResult result;
  result.tokens = scored_tokens(sequences);
  result.sum_nll = total(pipeline_ ? pipeline_->evaluate(*trainable_, sequences)
                                   : summed_nll(trainable_->model(trainable_->values()), own(sequences),
                                                ranks_.stage, /*recompute=*/false));
  return result;
}

mx::array Trainer::whole(const weights::Slice& slice, const mx::array& part) const {
  return whole_of(slice, part, ranks_.parts());
}

mx::array Trainer::from_first(const mx::array& value) const {
  const bool first = ranks_.stage.group.rank() == 0 && ranks_.data.rank() == 0;
  const mx::array own = first ? value : mx::zeros_like(value);
  return sum_of_one(sum_of_one(own, ranks_.stage.group), ranks_.data);
}

}  // namespace tandem::train
