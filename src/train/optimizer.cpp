#include "train/optimizer.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/hash.h"
#include "kernels/eight_bits.h"
#include "train/adafactor.h"
#include "train/muon.h"
#include "train/parts.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

const std::string adamw = "adamw", adafactor = "adafactor", muon = "muon", balance = "balance";

mx::array scaled(const mx::array& x, double factor) {
  return mx::multiply(x, mx::array(static_cast<float>(factor)));
}

// The running mean of x.
mx::array averaged(const mx::array& mean, const mx::array& x, float beta) {
  return mx::add(scaled(mean, beta), scaled(x, 1 - beta));
}

// A matrix, or a stack of them, that is no embedding, output matrix or router.
bool is_product_of_layer(const weights::Slice& slice) {
  return slice.name.starts_with("model.layers.") && slice.shape.size() >= 2 && !is_router(slice.name);
}

}  // namespace

float usual_beta1(const std::string& name) {
  if (name == adafactor) return 0;
  return name == muon ? 0.95F : 0.9F;
}

Optimizer::Optimizer(OptimizerOptions options, std::vector<weights::Slice> slices,
                     mx::distributed::Group group)
    : options_(std::move(options)),
      slices_(std::move(slices)),
      group_(std::move(group)),
      kept_(slices_.size()) {
  const std::array<std::string, 5> names{adamw, "sgd", "lion", adafactor, muon};
  if (std::find(names.begin(), names.end(), options_.name) == names.end())
    throw InputError(
        fmt::format("--optimizer {}: there are adamw, sgd, lion, adafactor and muon", options_.name));
  if (options_.bits != 32 && (options_.bits != 8 || options_.name != adamw))
    throw InputError(fmt::format("--optimizer-bits {}: 32, or 8 of adamw", options_.bits));
}

const std::string& Optimizer::rule_of(std::size_t parameter) const {
  if (is_router_bias(slices_[parameter].name)) return balance;
  return options_.name == muon && !is_product_of_layer(slices_[parameter]) ? adamw : options_.name;
}

// Vectors are few numbers, and those that a model is sensitive to.
bool Optimizer::in_8_bit(std::size_t parameter) const {
  return options_.bits == 8 && slices_[parameter].shape.size() >= 2;
}

std::vector<weights::Slice> Optimizer::state_slices(std::size_t parameter) const {
  const weights::Slice& slice = slices_[parameter];
  const std::string& rule = rule_of(parameter);
  std::vector<weights::Slice> found;
  if (rule == balance) return found;
  if (rule == adafactor) found = adafactor_state(slice);
  if (rule == adamw) found.push_back(slice);
  if (rule == adamw || rule == "lion" || rule == muon || options_.beta1 > 0) found.push_back(slice);
  for (std::size_t i = 0; i < found.size(); ++i) found[i].name += fmt::format(".optimizer{}", i);
  return found;
}

std::vector<mx::array> Optimizer::state(std::size_t parameter) const {
  const auto& kept = kept_[parameter];
  if (!kept.empty() && !in_8_bit(parameter)) return kept;
  const auto slices = state_slices(parameter);
  if (!kept.empty()) {
    const auto shape = slices.front().part_shape();
    return {kernels::unpack_signed({kept[0], kept[1]}, shape),
            mx::square(kernels::unpack_unsigned({kept[2], kept[3]}, shape))};
  }
  std::vector<mx::array> zeros;
  for (const auto& slice : slices) zeros.push_back(mx::zeros(slice.part_shape(), mx::float32));
  return zeros;
}

void Optimizer::restore(std::size_t parameter, const std::vector<mx::array>& state) {
  kept_[parameter] = state;
  if (in_8_bit(parameter)) {
    const auto mean = kernels::pack_signed(state[0], {}),
               root = kernels::pack_unsigned(mx::sqrt(state[1]), {});
    kept_[parameter] = {mean.codes, mean.largest, root.codes, root.largest};
  }
  mx::eval(kept_[parameter]);
}

std::size_t Optimizer::state_bytes() const {
  std::size_t bytes = 0;
  for (const auto& kept : kept_)
    for (const auto& array : kept) bytes += array.nbytes();
  return bytes;
}

std::size_t Optimizer::state_bytes_in_full() const {
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < slices_.size(); ++i)
    for (const auto& slice : state_slices(i)) {
      const auto shape = slice.part_shape();
      std::size_t numbers = 1;
      for (const int size : shape) numbers *= static_cast<std::size_t>(size);
      bytes += numbers * (in_8_bit(i) ? 1 : sizeof(float));
    }
  return bytes;
}

kernels::AdamwStep Optimizer::adamw_step(float learning_rate) const {
  const auto& o = options_;
  const float beta1 = o.name == adamw ? o.beta1 : usual_beta1(adamw);
  return {.beta1 = beta1,
          .beta2 = o.beta2,
          .eps = o.eps,
          .keep = 1 - learning_rate * o.weight_decay,
          .rate = static_cast<float>(learning_rate / (1 - std::pow(beta1, steps_))),
          .square_scale = static_cast<float>(1 / (1 - std::pow(o.beta2, steps_)))};
}

mx::array Optimizer::moved_in_8_bit(std::size_t parameter, const mx::array& value, const mx::array& gradient,
                                    float learning_rate) {
  auto& kept = kept_[parameter];
  if (kept.empty()) restore(parameter, state(parameter));
  // The same on every rank that holds the same, and in a run that goes on.
  const auto key = mixed(fnv1a(slices_[parameter].name, static_cast<std::uint64_t>(steps_)));
  const auto after = kernels::adamw({value, {kept[0], kept[1]}, {kept[2], kept[3]}}, gradient,
                                    adamw_step(learning_rate), static_cast<std::uint32_t>(key));
  kept = {after.mean.codes, after.mean.largest, after.root.codes, after.root.largest};
  return after.value;
}

mx::array Optimizer::moved(std::size_t parameter, const mx::array& value, const mx::array& gradient,
                           std::vector<mx::array>& state, float learning_rate) const {
  const auto& o = options_;
  const std::string& rule = rule_of(parameter);
  const weights::Slice& slice = slices_[parameter];
  if (rule == balance) {
    const mx::array under = mx::sign(mx::subtract(mx::mean(gradient), gradient));
    return mx::add(value, scaled(under, o.balance_rate));
  }
  if (rule == adamw) {
    const auto after = kernels::adamw({value, state[0], state[1]}, gradient, adamw_step(learning_rate));
    state = {after.mean, after.square};
    return after.value;
  }
  const mx::array decayed = scaled(value, 1 - learning_rate * o.weight_decay);
  if (rule == "lion") {
    const mx::array direction = mx::sign(averaged(state[0], gradient, o.beta1));
    state[0] = averaged(state[0], gradient, o.beta2);
    return mx::subtract(decayed, scaled(direction, learning_rate));
  }
  if (rule == muon) {
    state[0] = averaged(state[0], gradient, o.beta1);
    const mx::array ahead = averaged(state[0], gradient, o.beta1);
    return mx::subtract(decayed, scaled(muon_direction(ahead, slice, group_), learning_rate));
  }
  if (rule == adafactor) {
    mx::array change = scaled(adafactor_direction(gradient, state, slice, steps_, group_), learning_rate);
    if (o.beta1 > 0) change = state.back() = averaged(state.back(), change, o.beta1);
    return mx::subtract(decayed, change);
  }
  if (o.beta1 <= 0) return mx::subtract(decayed, scaled(gradient, learning_rate));
  state[0] = mx::add(scaled(state[0], o.beta1), gradient);
  return mx::subtract(decayed, scaled(state[0], learning_rate));
}

std::vector<mx::array> Optimizer::step(const std::vector<mx::array>& parameters,
                                       const std::vector<mx::array>& gradients, double learning_rate) {
  // These take much memory on the way, and speak to the other ranks: in the same order on each.
  const bool in_turn = options_.bits == 8 || options_.name == adafactor || options_.name == muon;
  const auto rate = static_cast<float>(learning_rate);
  ++steps_;
  std::vector<mx::array> after, pending;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (in_8_bit(i)) {
      after.push_back(moved_in_8_bit(i, parameters[i], gradients[i], rate));
    } else {
      kept_[i] = state(i);
      after.push_back(moved(i, parameters[i], gradients[i], kept_[i], rate));
    }
    pending.push_back(after.back());
    pending.insert(pending.end(), kept_[i].begin(), kept_[i].end());
    if (!in_turn && i + 1 < parameters.size()) continue;
    mx::eval(pending);
    pending.clear();
  }
  return after;
}

}  // namespace tandem::train
