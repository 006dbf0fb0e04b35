#include "train/trainer.h"

#include <mlx/distributed/distributed_impl.h>
#include <mlx/memory.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <numeric>
#include <set>

#include "base/log.h"
#include "parallel/tcp_group.h"
#include "train/data.h"
#include "train/parts.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

// Parameters in the order in which a backward has their gradients: the output's, those of the last layer's
// last product, …
std::vector<std::size_t> as_they_come(const std::vector<Parameter>& parameters) {
  const auto depth = [&](std::size_t i) {
    const std::string& name = parameters[i].slice.name;
    const int layer = layer_of(name);
    return layer >= 0 ? layer : name.starts_with("model.embed_tokens") ? -1 : INT_MAX;
  };
  std::vector<std::size_t> order(parameters.size());
  std::iota(order.rbegin(), order.rend(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return depth(a) > depth(b); });
  return order;
}

double bytes_of(const std::vector<mx::array>& arrays) {
  double bytes = 0;
  for (const auto& array : arrays) bytes += static_cast<double>(array.nbytes());
  return bytes;
}

constexpr int probed_rows = 64;

// Of the rows of an embedding [n, hidden] from `first` on, those of all ranks' tokens, in order: [m] int32.
mx::array rows_of(const std::vector<std::vector<Sequence>>& micro_batches, int first, int n) {
  std::set<int> found;
  for (const auto& batch : micro_batches)
    for (const auto& text : batch)
      for (const int id : text.ids)
        if (id >= first && id < first + n) found.insert(id - first);
  if (found.empty()) found.insert(0);  // the ranks with other rows sum some of theirs: all graphs are alike
  const std::vector<int> list(found.begin(), found.end());
  return mx::array(list.data(), {static_cast<int>(list.size())}, mx::int32);
}

}  // namespace

int recomputed_every(double needed_bytes, double free_bytes) {
  // What is free changes, and a layer's backward takes something too.
  constexpr double used = 0.8;
  const double share = needed_bytes > 0 ? std::max(0.0, used * free_bytes) / needed_bytes : 1;
  if (share >= 1) return 0;
  return std::clamp(static_cast<int>(1 / (1 - share)), 1, most_between);
}

Trainer::Trainer(std::unique_ptr<Trainable> trainable, Ranks ranks, const TrainerOptions& options)
    : trainable_(std::move(trainable)),
      ranks_(std::move(ranks)),
      options_(options),
      optimizer_(options.optimizer, trainable_->slices(), ranks_.parts()),
      loss_scale_{options.loss_scale, 0},
      feedback_(options.error_feedback ? trainable_->parameters().size() : 0) {
  // A group takes one collective at a time, and a model's own are on the default stream.
  const bool by_cpu = ranks_.data.raw_group()->communication_stream().device == mx::Device::cpu;
  if (ranks_.parts().size() == 1 && by_cpu) link_ = mx::new_stream(mx::Device::cpu);
  if (ranks_.place.stages > 1)
    pipeline_.emplace(ranks_.world, ranks_.place, ranks_.stage, trainable_->hidden());
}

std::vector<Sequence> Trainer::own(const std::vector<Sequence>& sequences) const {
  std::vector<Sequence> found = part_of(sequences, ranks_.shares, ranks_.data.rank());
  // A rank with nothing to compute still has parts of matrices to give.
  if (ranks_.sharded && input_rows(found) == 0) found.push_back({{0, 0}, /*loss_from=*/2});
  return found;
}

// The sum of a parameter's gradient over the ranks with other sequences, on its way.
mx::array Trainer::summed(std::size_t index, const mx::array& gradient,
                          const std::vector<std::vector<Sequence>>& micro_batches, parallel::InOrder& sums) {
  const Parameter& parameter = trainable_->parameters()[index];
  if (options_.error_feedback) return sums.sum(feedback_.rounded(index, gradient));
  if (!parameter.looked_up) return sums.sum(gradient);
  const int first = parameter.slice.axis == 0 ? parameter.slice.part.begin : 0;
  const mx::array rows = rows_of(micro_batches, first, gradient.shape(0));
  const mx::array some = sums.sum(mx::take(gradient, rows, 0));
  return mx::scatter(mx::zeros_like(gradient), rows, mx::expand_dims(some, 1), 0);
}

// The sums over the ranks that compute parts of them.
std::vector<mx::array> Trainer::reduced(std::vector<mx::array> gradients,
                                        const std::vector<std::vector<Sequence>>& micro_batches) {
  const auto& parameters = trainable_->parameters();
  if (ranks_.sharded) mx::eval(gradients);  // with their own collectives
  parallel::InOrder sums(ranks_.data, link_);
  for (const std::size_t i : as_they_come(parameters)) {
    if (parameters[i].partial) gradients[i] = parallel::sum(gradients[i], ranks_.stage.group);
    if (parameters[i].scattered || ranks_.data.size() == 1) continue;
    gradients[i] = summed(i, gradients[i], micro_batches, sums);
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
  if (!pipeline_) return std::sqrt(sum_of_numbers(sum, ranks_.parts()).item<float>());
  return std::sqrt(sum_of_numbers(sum, ranks_.world).item<float>() / static_cast<float>(ranks_.data.size()));
}

// Of all ranks, from those that computed it.
double Trainer::total(const mx::array& nll) const {
  if (!pipeline_) return sum_of_numbers(nll, ranks_.data).item<float>();
  const bool has_it = ranks_.place.last() && ranks_.stage.group.rank() == 0;
  return sum_of_numbers(has_it ? nll : mx::array(0.0F), ranks_.world).item<float>();
}

void Trainer::adapt_loss_scale(bool finite) {
  auto& [scale, steps] = loss_scale_;
  if (!finite || ++steps == loss_scale_steps) {
    if (scale > 0) {
      scale = std::clamp(finite ? scale * 2 : scale / 2, 1.0F, largest_loss_scale);
      feedback_.clear();  // it is of gradients by the scale before
    }
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
      const mx::array sum =
          summed_nll(trainable_->model(values), sequences, stage, options_.recomputed_every);
      return scale == 1 ? sum : mx::multiply(sum, mx::array(scale));
    };
    const auto values = trainable_->values();
    auto [sum, found] = mx::value_and_grad(loss, wanted)(values);
    for (std::size_t i = 0; idle && i < found.size(); ++i)
      if (trainable_->parameters()[i].balances) found[i] = mx::zeros_like(found[i]);
    for (std::size_t i = 0; i < sums.gradients.size(); ++i) found[i] = mx::add(sums.gradients[i], found[i]);
    const bool last = &batch == &micro_batches.back();
    sums.gradients = last ? reduced(std::move(found), micro_batches) : std::move(found);
    sums.nll = mx::add(sums.nll, sum);
    // The last layers' come first, so that their sums over ranks are under way while the others are computed.
    std::vector<mx::array> all(sums.gradients.rbegin(), sums.gradients.rend());
    all.push_back(sums.nll);
    if (last) all.insert(all.end(), feedback_.left_over().begin(), feedback_.left_over().end());
    mx::eval(all);
  }
  return sums;
}

Sums Trainer::staged_sums(const std::vector<std::vector<Sequence>>& micro_batches, float scale) {
  std::vector<std::vector<Sequence>> parts;
  for (const auto& batch : micro_batches)
    for (auto& part : parts_for(ranks_.place.stages, own(batch))) parts.push_back(std::move(part));
  Sums sums = pipeline_->run(*trainable_, parts, scale, options_.recomputed_every);
  if (parts.empty())
    for (const auto& value : trainable_->values()) sums.gradients.push_back(mx::zeros_like(value));
  sums.gradients = reduced(std::move(sums.gradients), micro_batches);
  mx::eval(sums.gradients);
  add_tied(sums.gradients);
  mx::eval(sums.gradients);
  mx::eval(feedback_.left_over());
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
  result.skipped ? feedback_.forget() : feedback_.take();
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

// What a forward over so many made-up tokens leaves in memory for its gradient.
double Trainer::activation_bytes(int rows) {
  const Sequence text{std::vector<int>(static_cast<std::size_t>(rows) + 1, 0)};
  std::vector<mx::array> primals = trainable_->values();
  const std::size_t learnt = primals.size();
  if (!ranks_.place.first())
    primals.push_back(mx::zeros({rows, trainable_->hidden()}, ranks_.stage.activations));
  if (primals.empty()) return 0;
  const auto loss = [&](const std::vector<mx::array>& values) {
    const auto input = values.size() > learnt ? std::optional(values.back()) : std::nullopt;
    return mx::sum(stage_output(trainable_->model({values.begin(), values.begin() + learnt}), {text}, input,
                                ranks_.stage, /*recomputed_every=*/0));
  };
  std::vector<int> wanted(primals.size());
  std::iota(wanted.begin(), wanted.end(), 0);
  mx::eval(primals);
  const auto before = static_cast<double>(mx::get_active_memory());
  auto [sum, gradients] = mx::value_and_grad(loss, wanted)(primals);
  sum.eval();  // what the gradients are to be computed of is there now, and held by them
  return std::max(0.0, static_cast<double>(mx::get_active_memory()) - before);
}

void Trainer::recompute_by_memory(int rows, int longest, std::uint64_t free_bytes) {
  // Bytes of one text of T tokens: a + b T + c T², where attention keeps its scores (MLX's on some GPUs).
  constexpr double t1 = probed_rows, t2 = 2 * t1, t3 = 4 * t1;
  const double one = activation_bytes(t1), two = activation_bytes(t2), three = activation_bytes(t3);
  const double slope = (two - one) / (t2 - t1), next_slope = (three - two) / (t3 - t2);
  const double c = std::max(0.0, (next_slope - slope) / (t3 - t1)), b = std::max(0.0, slope - c * (t1 + t2));
  const double a = std::max(0.0, one - b * t1 - c * t1 * t1);
  const double needed = a + (b + c * longest) * rows;
  // Gradients, twice while micro-batches are added up, what is held back of them, and what the optimizer
  // remembers are still to come.
  const bool holds_back = options_.error_feedback && ranks_.data.size() > 1 && !ranks_.sharded;
  const double copies = holds_back ? 4 : 2;
  const double others =
      copies * bytes_of(trainable_->values()) + static_cast<double>(optimizer_.state_bytes_in_full());
  log::debug("activations of {} tokens take {:.0f} MB; free are {:.0f} MB, of which others take {:.0f} MB",
             rows, needed / 1e6, static_cast<double>(free_bytes) / 1e6, others / 1e6);
  const int every = train::recomputed_every(needed, static_cast<double>(free_bytes) - others);
  const mx::array share(every > 0 ? 1.0F / static_cast<float>(every) : 0.0F);
  const float most = parallel::max(share, ranks_.world).item<float>();
  options_.recomputed_every = most > 0 ? static_cast<int>(std::lround(1 / most)) : 0;
}

StepResult Trainer::evaluate(const std::vector<Sequence>& sequences) {
  StepResult result;
  result.tokens = scored_tokens(sequences);
  result.sum_nll = total(pipeline_ ? pipeline_->evaluate(*trainable_, own(sequences))
                                   : summed_nll(trainable_->model(trainable_->values()), own(sequences),
                                                ranks_.stage, /*recomputed_every=*/0));
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
