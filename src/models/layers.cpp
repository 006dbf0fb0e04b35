#include "models/layers.h"

#include <mlx/ops.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/linear.h"
#include "parallel/collectives.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;

// gain · (y + scale · x · downᵀ · upᵀ).
mx::array adapted(const mx::array& y, const mx::array& x, const Adapter& adapter) {
  const mx::array low = kernels::linear(x, adapter.down);  // [T, rank]
  const mx::array sum = kernels::add_linear(y, low, adapter.up, adapter.scale);
  return adapter.gain ? mx::multiply(sum, mx::astype(*adapter.gain, sum.dtype())) : sum;
}

mx::array with_bias(const mx::array& y, const ShardedLinear& w) {
  return w.bias ? kernels::add(y, *w.bias) : y;
}

}  // namespace

std::size_t bytes_of(const ShardedLinear& w) { return w.weight.bytes() + (w.bias ? w.bias->nbytes() : 0); }

std::vector<mx::array> products(const mx::array& x, const std::vector<const ShardedLinear*>& matrices) {
  std::vector<kernels::Matrix> weights;
  for (const auto* w : matrices) weights.push_back(w->weight);
  std::vector<mx::array> parts = kernels::linear(x, weights);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const ShardedLinear& w = *matrices[i];
    if (w.adapter) parts[i] = adapted(parts[i], x, *w.adapter);
    if (w.reduce == parallel::Reduce::none) parts[i] = with_bias(parts[i], w);
  }
  return parts;
}

mx::array reduced(const mx::array& part, const ShardedLinear& w, const Context& context) {
  if (w.reduce == parallel::Reduce::sum) return with_bias(parallel::sum(part, context.group), w);
  if (w.reduce == parallel::Reduce::gather)
    return with_bias(parallel::gather_columns(part, w.parts, context.group), w);
  return part;
}

mx::array embed(const mx::array& ids, const ShardedLinear& w, int first_id, const Context& context) {
  const int rows = w.weight.out();
  if (context.group.size() == 1) return mx::astype(kernels::rows(w.weight, ids), context.activations);
  const mx::array local = mx::subtract(ids, mx::array(first_id));
  const mx::array here =
      mx::logical_and(mx::greater_equal(local, mx::array(0)), mx::less(local, mx::array(rows)));
  const mx::array found = kernels::rows(w.weight, mx::where(here, local, mx::array(0)));
  const mx::array x = mx::where(mx::expand_dims(here, 1), mx::astype(found, context.activations),
                                mx::array(0, context.activations));
  return parallel::sum(x, context.group);
}

Rope make_rope(const RopeConfig& config, int dims, bool pairs) {
  const int half = dims / 2;
  std::vector<float> wavelengths(half);
  // yarn: where a dimension turns `turns` times within the original context (arXiv:2309.00071, equation 17's
  // inverse).
  const auto dimension_of = [&](double turns) {
    return dims * std::log(config.original_context / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(config.theta));
  };
  double low = 0, high = 0;
  if (config.kind == RopeConfig::Kind::yarn) {
    low = dimension_of(config.beta_fast);
    high = dimension_of(config.beta_slow);
    if (config.truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0);
    high = std::min(high, dims - 1.0);
    if (low == high) high += 0.001;
  }
  for (int i = 0; i < half; ++i) {
    double frequency = std::pow(config.theta, -2.0 * i / dims);
    // How much of the stretched frequency enters, 0 to 1.
    double stretched = 0;
    switch (config.kind) {
      case RopeConfig::Kind::plain:
        break;
      case RopeConfig::Kind::linear:
        stretched = 1;
        break;
      case RopeConfig::Kind::llama3: {
        const double turns = config.original_context * frequency / (2 * std::numbers::pi);
        const double smooth =
            (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
        stretched = 1 - std::clamp(smooth, 0.0, 1.0);
        break;
      }
      case RopeConfig::Kind::yarn:
        stretched = std::clamp((i - low) / (high - low), 0.0, 1.0);
        break;
    }
    frequency = frequency / config.factor * stretched + frequency * (1 - stretched);
    wavelengths[i] = static_cast<float>(1 / frequency);
  }
  return {mx::array(wavelengths.begin(), {half}), static_cast<float>(config.attention_factor), pairs};
}

std::vector<int> positions_of(const std::vector<SequenceRows>& sequences) {
  std::vector<int> positions;
  for (const auto& sequence : sequences) {
    const int start = sequence.cache ? sequence.cache->length() : 0;
    for (int i = 0; i < sequence.tokens; ++i) positions.push_back(start + i);
  }
  return positions;
}

kernels::Angles angles(const Rope& rope, const std::vector<int>& positions) {
  const mx::array rows(positions.begin(), {static_cast<int>(positions.size())}, mx::int32);
  return kernels::angles_at(rows, rope.wavelengths, rope.attention_factor, rope.pairs);
}

}  // namespace tandem::models
