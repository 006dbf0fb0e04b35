#include "train/optimizer.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <cmath>

#include "base/error.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

mx::array scaled(const mx::array& x, double factor) {
  return mx::multiply(x, mx::array(static_cast<float>(factor)));
}

// The running mean of x.
mx::array averaged(const mx::array& mean, const mx::array& x, float beta) {
  return mx::add(scaled(mean, beta), scaled(x, 1 - beta));
}

}  // namespace

Optimizer::Optimizer(OptimizerOptions options) : options_(std::move(options)) {
  if (options_.name != "adamw" && options_.name != "sgd" && options_.name != "lion") {
    throw InputError(fmt::format("--optimizer {}: there are adamw, sgd and lion", options_.name));
  }
}

int Optimizer::arrays_a_parameter() const {
  if (options_.name == "adamw") return 2;
  return options_.name == "lion" || options_.beta1 > 0 ? 1 : 0;
}

void Optimizer::restore(int steps, std::vector<mx::array> state) {
  steps_ = steps;
  state_ = std::move(state);
}

mx::array Optimizer::moved(const mx::array& parameter, const mx::array& gradient, mx::array* state,
                           float learning_rate) const {
  const auto& o = options_;
  const mx::array decayed = scaled(parameter, 1 - learning_rate * o.weight_decay);
  if (o.name == "adamw") {
    mx::array &mean = state[0], &square = state[1];
    mean = averaged(mean, gradient, o.beta1);
    square = averaged(square, mx::square(gradient), o.beta2);
    const double mean_scale = 1 / (1 - std::pow(o.beta1, steps_)),
                 square_scale = 1 / (1 - std::pow(o.beta2, steps_));
    const mx::array size = mx::add(mx::sqrt(scaled(square, square_scale)), mx::array(o.eps));
    return mx::subtract(decayed, mx::divide(scaled(mean, learning_rate * mean_scale), size));
  }
  if (o.name == "lion") {
    const mx::array direction = mx::sign(averaged(state[0], gradient, o.beta1));
    state[0] = averaged(state[0], gradient, o.beta2);
    return mx::subtract(decayed, scaled(direction, learning_rate));
  }
  if (o.beta1 <= 0) return mx::subtract(decayed, scaled(gradient, learning_rate));
  state[0] = mx::add(scaled(state[0], o.beta1), gradient);
  return mx::subtract(decayed, scaled(state[0], learning_rate));
}

std::vector<mx::array> Optimizer::step(const std::vector<mx::array>& parameters,
                                       const std::vector<mx::array>& gradients, double learning_rate) {
  const int each = arrays_a_parameter();
  if (state_.empty()) {
    for (const auto& parameter : parameters)
      for (int i = 0; i < each; ++i) state_.push_back(mx::zeros(parameter.shape(), mx::float32));
  }
  ++steps_;
  std::vector<mx::array> after;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    mx::array* state = each > 0 ? &state_[i * static_cast<std::size_t>(each)] : nullptr;
    after.push_back(moved(parameters[i], gradients[i], state, static_cast<float>(learning_rate)));
  }
  auto all = after;
  all.insert(all.end(), state_.begin(), state_.end());
  mx::eval(all);
  return after;
}

}  // namespace tandem::train
