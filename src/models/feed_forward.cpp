#include "models/feed_forward.h"

#include <mlx/ops.h>

#include "kernels/linear.h"
#include "kernels/sequence_balance.h"
#include "models/loading.h"

namespace tandem::models {

namespace mx = mlx::core;

namespace {

// Of rows x by the experts of their ids: [T, k, out]; with weights [T, k], summed over the choices: [T, out].
mx::array product(const mx::array& x, const ShardedExperts& w, const mx::array& ids,
                  const std::optional<mx::array>& weights = std::nullopt) {
  const auto times = [&](const mx::array& rows, const kernels::Experts& experts) {
    return weights ? kernels::gather_linear_sum(rows, *weights, experts, ids)
                   : kernels::gather_linear(rows, experts, ids);
  };
  const mx::array y = times(x, w.weight);
  if (!w.adapter) return y;
  const mx::array low = kernels::gather_linear(x, w.adapter->down, ids);  // [T, k, rank]
  const mx::array added = times(low, w.adapter->up);
  return mx::add(y, mx::astype(mx::multiply(added, mx::array(w.adapter->scale, added.dtype())), y.dtype()));
}

}  // namespace

mx::array feed_forward(const FeedForward& w, const mx::array& x) {
  const auto projected = products(x, {&w.gate, &w.up});  // [T, ffn] each
  return products(kernels::silu_multiply(projected[0], projected[1]), {&w.down}).front();
}

mx::array feed_forward(const Mixture& w, const mx::array& x, const std::vector<SequenceRows>& sequences,
                       const std::vector<float>& balance_weights) {
  mx::array logits = kernels::linear(x, w.router);
  if (!balance_weights.empty()) {
    std::vector<int> tokens;
    for (const auto& sequence : sequences) tokens.push_back(sequence.tokens);
    logits = kernels::with_sequence_balance(logits, w.routing, tokens, balance_weights);
  }
  const auto routes = kernels::route(logits, w.router_bias, w.routing);  // [T, k]
  const mx::array gate = product(x, w.gate, routes.ids);                 // [T, k, ffn]
  const mx::array up = product(x, w.up, routes.ids);
  const mx::array routed =
      product(kernels::silu_multiply(gate, up), w.down, routes.ids, routes.weights);  // [T, hidden]
  return w.shared ? kernels::add(routed, feed_forward(*w.shared, x)) : routed;
}

std::size_t step_bytes(const FeedForward& w) { return bytes_of(w.gate) + bytes_of(w.up) + bytes_of(w.down); }

std::size_t step_bytes(const Mixture& w) {
  const std::size_t experts =
      bytes_of_one(w.gate.weight) + bytes_of_one(w.up.weight) + bytes_of_one(w.down.weight);
  const auto held = static_cast<std::size_t>(w.routing.end_held - w.routing.first_held);
  return w.router.bytes() + (w.router_bias ? w.router_bias->nbytes() : 0) +
         experts * static_cast<std::size_t>(w.routing.chosen) * held /
             static_cast<std::size_t>(w.routing.experts) +
         (w.shared ? step_bytes(*w.shared) : 0);
}

}  // namespace tandem::models
