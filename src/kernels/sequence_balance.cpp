#include "kernels/sequence_balance.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Of each row by what its shares of the scores are multiplied: weight / tokens · f of its sequence.
mx::array factors(const mx::array& logits, const Routing& r, const std::vector<int>& tokens,
                  const std::vector<float>& weights, mx::Stream s) {
  std::vector<int> last, sequence_of;
  std::vector<float> scales;
  int rows = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto count = static_cast<float>(tokens[i]);
    sequence_of.insert(sequence_of.end(), static_cast<std::size_t>(tokens[i]), static_cast<int>(i));
    last.push_back((rows += tokens[i]) - 1);
    scales.push_back(weights[i] * static_cast<float>(r.experts) / static_cast<float>(r.chosen) / count /
                     count);
  }
  const int sequences = static_cast<int>(tokens.size());
  const mx::array order = mx::argsort(mx::negative(logits, s), -1, s);  // as the scores'
  const mx::array best = mx::slice(order, {0, 0}, {rows, r.chosen}, s);
  const mx::array is_best = mx::put_along_axis(mx::zeros_like(logits, s), best, mx::array(1.0F), 1, s);
  const mx::array before =
      mx::take(mx::cumsum(is_best, 0, false, true, s), mx::array(last.begin(), {sequences}), 0, s);
  const mx::array counts = mx::subtract(before,
                                        mx::pad(mx::slice(before, {0, 0}, {sequences - 1, r.experts}, s),
                                                {{1, 0}, {0, 0}}, mx::array(0.0F), "constant", s),
                                        s);
  const mx::array scaled = mx::multiply(counts, mx::array(scales.begin(), {sequences, 1}), s);
  return mx::take(scaled, mx::array(sequence_of.begin(), {rows}), 0, s);
}

}  // namespace

mx::array with_sequence_balance(const mx::array& logits, const Routing& routing,
                                const std::vector<int>& tokens, const std::vector<float>& weights,
                                mx::StreamOrDevice at) {
  const mx::Stream s = mx::to_stream(at);
  const auto same = [](const std::vector<mx::array>& in) { return in; };
  const auto backward = [routing, tokens, weights, s](const std::vector<mx::array>& in,
                                                      const std::vector<mx::array>& cotangents,
                                                      const std::vector<mx::array>&) {
    const mx::array exact = mx::astype(mx::stop_gradient(in[0], s), mx::float32, s);
    const mx::array factor = factors(exact, routing, tokens, weights, s);
    const auto shares = [&](const std::vector<mx::array>& at) {
      const mx::array scores = router_scores(at[0], routing, s);
      return std::vector{
          mx::divide(scores, mx::add(mx::sum(scores, -1, true, s), mx::array(least_sum), s), s)};
    };
    const mx::array slope = mx::vjp(shares, {exact}, {factor}).second.front();
    return std::vector{mx::add(cotangents[0], mx::astype(slope, cotangents[0].dtype(), s), s)};
  };
  return mx::custom_vjp(same, backward)({logits}).front();
}

}  // namespace tandem::kernels
