#include "kernels/routing.h"

#include <mlx/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "kernels/cpu_primitive.h"
#include "kernels/cuda_kernel.h"
#include "kernels/cuda_routing.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

constexpr float lowest = -std::numeric_limits<float>::infinity();

// One token's choice.
class Choice {
 public:
  explicit Choice(const Routing& routing)
      : routing_(routing), scores_(routing.experts), ranked_(routing.experts) {}

  void make(const float* logits, const float* bias, std::int32_t* ids, float* weights) {
    score(logits);
    std::vector<float>& by = ranked_;
    for (int e = 0; e < routing_.experts; ++e) by[e] = scores_[e] + (bias ? bias[e] : 0.0F);
    if (routing_.groups > routing_.chosen_groups) drop_groups();
    float sum = 0;
    for (int k = 0; k < routing_.chosen; ++k) {
      const auto best = std::max_element(by.begin(), by.end());
      const int expert = static_cast<int>(best - by.begin());
      *best = lowest;
      weights[k] = scores_[expert];
      sum += scores_[expert];
      const bool held = expert >= routing_.first_held && expert < routing_.end_held;
      ids[k] = held ? expert - routing_.first_held : -1;
    }
    const float factor = routing_.normalised ? routing_.scale / (sum + least_sum) : routing_.scale;
    for (int k = 0; k < routing_.chosen; ++k) weights[k] *= factor;
  }

 private:
  void score(const float* logits) {
    if (routing_.score == Routing::Score::sigmoid) {
      for (int e = 0; e < routing_.experts; ++e) scores_[e] = 1 / (1 + std::exp(-logits[e]));
      return;
    }
    const float top = *std::max_element(logits, logits + routing_.experts);
    float sum = 0;
    for (int e = 0; e < routing_.experts; ++e) sum += scores_[e] = std::exp(logits[e] - top);
    for (float& s : scores_) s /= sum;
  }

  // Only the best groups stay.
  void drop_groups() {
    const int size = routing_.experts / routing_.groups;
    std::vector<float> of_group(routing_.groups);
    for (int g = 0; g < routing_.groups; ++g) {
      float best = lowest, second = lowest;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        second = std::max(second, std::min(best, ranked_[e]));
        best = std::max(best, ranked_[e]);
      }
      of_group[g] = routing_.group_score == Routing::GroupScore::best ? best : best + second;
    }
    std::vector<int> order(routing_.groups);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return of_group[a] > of_group[b]; });
    for (int i = routing_.chosen_groups; i < routing_.groups; ++i)
      std::fill_n(ranked_.begin() + order[i] * size, size, lowest);
  }

  const Routing& routing_;
  std::vector<float> scores_, ranked_;
};

mx::array ids_by_mlx(const mx::array& scores, const std::optional<mx::array>& bias, const Routing& r,
                     mx::Stream s) {
  mx::array ranked = bias ? mx::add(scores, mx::astype(*bias, mx::float32, s), s) : scores;
  const int rows = scores.shape(0);
  if (r.groups > r.chosen_groups) {
    const mx::array groups = mx::reshape(ranked, {rows, r.groups, r.experts / r.groups}, s);
    const mx::array of_group = r.group_score == Routing::GroupScore::best
                                   ? mx::max(groups, -1, false, s)
                                   : mx::sum(mx::topk(groups, 2, -1, s), -1, false, s);
    const int dropped = r.groups - r.chosen_groups;
    const mx::array worst =
        mx::slice(mx::argpartition(of_group, dropped - 1, -1, s), {0, 0}, {rows, dropped}, s);
    ranked = mx::reshape(mx::put_along_axis(groups, mx::expand_dims(worst, -1, s), mx::array(lowest), 1, s),
                         {rows, r.experts}, s);
  }
  const mx::array best = mx::argsort(mx::negative(ranked, s), -1, s);
  return mx::astype(mx::slice(best, {0, 0}, {rows, r.chosen}, s), mx::int32, s);
}

// Outputs: ids of all experts, weights.
std::vector<mx::array> choose_by_mlx(const mx::array& logits, const std::optional<mx::array>& bias,
                                     const Routing& r, mx::Stream s) {
  const mx::array scores = router_scores(logits, r, s);
  // The choice has no gradient, so it may be the kernel's that has none.
  Routing all = r;
  all.first_held = 0;
  all.end_held = r.experts;
  const auto chosen = route_on_cuda(mx::stop_gradient(logits, s), bias, all, s);
  const mx::array ids = chosen ? chosen->ids : ids_by_mlx(mx::stop_gradient(scores, s), bias, r, s);
  mx::array weights = mx::take_along_axis(scores, ids, -1, s);
  if (r.normalised)
    weights = mx::divide(weights, mx::add(mx::sum(weights, -1, true, s), mx::array(least_sum), s), s);
  return {ids, mx::multiply(weights, mx::array(r.scale), s)};
}

// How many of the ids [T, chosen], counted from first_held, are each expert's that is held: [experts]. On a
// GPU the others have an id too, and no weight.
mx::array load_of(const Routes& routes, const Routing& r, mx::Stream s) {
  const mx::array held = mx::arange(r.end_held - r.first_held, mx::int32, s);
  const mx::array weighed = mx::greater(mx::reshape(routes.weights, {-1, 1}, s), mx::array(0.0F), s);
  const mx::array same = mx::logical_and(weighed, mx::equal(mx::reshape(routes.ids, {-1, 1}, s), held, s), s);
  const mx::array load = mx::sum(mx::astype(same, mx::float32, s), 0, false, s);
  return mx::pad(load, {{r.first_held, r.experts - r.end_held}}, mx::array(0.0F), "constant", s);
}

// The weights; the load takes the place of the bias's gradient.
mx::array with_load(const Routes& routes, const mx::array& bias, const Routing& r, mx::Stream s) {
  const Routes counted{routes.ids, mx::stop_gradient(routes.weights, s)};
  const auto same = mx::custom_vjp([](const auto& in) { return std::vector{in.front()}; },
                                   [r, counted, s](const auto&, const auto& cotangents, const auto&) {
                                     return std::vector{cotangents.front(), load_of(counted, r, s)};
                                   });
  return same({routes.weights, bias}).front();
}

class Route : public ReferencedPrimitive {
 public:
  Route(mx::Stream stream, const Routing& routing)
      : ReferencedPrimitive(stream,
                            [routing, stream](const auto& in) {
                              const auto bias = in.size() > 1 ? std::optional(in[1]) : std::nullopt;
                              return choose_by_mlx(in[0], bias, routing, stream);
                            }),
        routing_(routing) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [routing = routing_, logits = inputs[0].data<float>(),
            bias = inputs.size() > 1 ? inputs[1].data<float>() : nullptr,
            ids = result_of<std::int32_t>(outputs[0]), weights = result_of(outputs[1]),
            rows = inputs[0].shape(0)] {
      constexpr int rows_at_once = 16;
      parallel((rows + rows_at_once - 1) / rows_at_once, [&](std::int64_t part) {
        Choice choice(routing);
        for (auto r = part * rows_at_once; r < std::min<std::int64_t>(rows, (part + 1) * rows_at_once); ++r) {
          choice.make(logits + r * routing.experts, bias, ids + r * routing.chosen,
                      weights + r * routing.chosen);
        }
      });
    };
  }
  const char* name() const override { return "TandemRoute"; }

 private:
  Routing routing_;
};

// Without a gradient of the bias.
Routes routes_of(const mx::array& logits, const std::optional<mx::array>& bias, const Routing& routing,
                 mx::Stream stream) {
  if (stream.device == mx::Device::gpu) {
    if (!has_gradient({logits})) {
      if (auto routes = route_on_cuda(logits, bias, routing, stream)) return *routes;
    }
    const auto all = choose_by_mlx(logits, bias, routing, stream);
    if (routing.first_held == 0 && routing.end_held == routing.experts) return {all[0], all[1]};
    const mx::array local = mx::subtract(all[0], mx::array(routing.first_held), stream);
    const mx::array held =
        mx::logical_and(mx::greater_equal(local, mx::array(0), stream),
                        mx::less(local, mx::array(routing.end_held - routing.first_held), stream), stream);
    return {mx::where(held, local, mx::array(0), stream), mx::where(held, all[1], mx::array(0.0F), stream)};
  }
  std::vector<mx::array> in{as_float_rows(logits, stream)};
  if (bias) in.push_back(as_float_rows(*bias, stream));
  const mx::Shape shape{logits.shape(0), routing.chosen};
  const auto made = mx::array::make_arrays({shape, shape}, {mx::int32, mx::float32},
                                           std::make_shared<Route>(stream, routing), in);
  return {made[0], made[1]};
}

}  // namespace

mx::array router_scores(const mx::array& logits, const Routing& r, mx::StreamOrDevice s) {
  const mx::array exact = mx::astype(logits, mx::float32, s);
  return r.score == Routing::Score::sigmoid ? mx::sigmoid(exact, s)
                                            : mx::softmax(exact, -1, /*precise=*/true, s);
}

Routes route(const mx::array& logits, const std::optional<mx::array>& bias, const Routing& routing,
             mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (logits.ndim() != 2 || logits.shape(1) != routing.experts ||
      (bias && bias->shape() != mx::Shape{routing.experts}))
    throw std::invalid_argument("route: logits and bias are not one for each expert");
  if (!bias || !has_gradient({*bias})) return routes_of(logits, bias, routing, stream);
  const auto routes = routes_of(logits, mx::stop_gradient(*bias, stream), routing, stream);
  return {routes.ids, with_load(routes, *bias, routing, stream)};
}

mx::array weighted_sum(const mx::array& x, const mx::array& weights, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (x.ndim() != 3 || weights.shape() != mx::Shape{x.shape(0), x.shape(1)})
    throw std::invalid_argument("weighted_sum: x and weights do not fit together");
  if (auto sum = weighted_sum_on_cuda(x, weights, stream)) return *sum;
  const mx::array factors = mx::expand_dims(mx::astype(weights, x.dtype(), stream), -1, stream);
  return mx::sum(mx::multiply(x, factors, stream), 1, false, stream);
}

}  // namespace tandem::kernels
