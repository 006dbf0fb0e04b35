#include "kernels/routing.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "kernels/gradients.h"
#include "kernels/sequence_balance.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

const mx::Stream cpu = mx::default_stream(mx::Device::cpu);

template <typename T>
std::vector<T> values(mx::array x) {
  x = mx::contiguous(x, false, cpu);
  x.eval();
  return {x.data<T>(), x.data<T>() + x.size()};
}

// Which experts, with which weights, written down from the papers in double precision.
std::map<int, double> expected_choice(const std::vector<float>& logits, const std::vector<float>& bias,
                                      const Routing& r) {
  std::vector<double> scores;
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l));
  for (const float l : logits)
    scores.push_back(r.score == Routing::Score::sigmoid ? 1 / (1 + std::exp(-static_cast<double>(l)))
                                                        : std::exp(static_cast<double>(l)) / sum);
  std::vector<std::pair<double, int>> groups;
  const int size = r.experts / r.groups;
  const auto ranked = [&](int e) { return scores[e] + (bias.empty() ? 0 : bias[e]); };
  for (int g = 0; g < r.groups; ++g) {
    std::vector<double> in;
    for (int e = g * size; e < (g + 1) * size; ++e) in.push_back(ranked(e));
    std::sort(in.rbegin(), in.rend());
    groups.push_back({r.group_score == Routing::GroupScore::best ? in[0] : in[0] + in[1], g});
  }
  std::sort(groups.rbegin(), groups.rend());
  std::vector<std::pair<double, int>> experts;
  for (int i = 0; i < r.chosen_groups; ++i) {
    for (int e = groups[i].second * size; e < (groups[i].second + 1) * size; ++e)
      experts.push_back({ranked(e), e});
  }
  std::sort(experts.rbegin(), experts.rend());
  std::map<int, double> chosen;
  double total = 0;
  for (int k = 0; k < r.chosen; ++k) total += scores[experts[k].second];
  for (int k = 0; k < r.chosen; ++k) {
    const int e = experts[k].second;
    chosen[e] = scores[e] * r.scale / (r.normalised ? total : 1);
  }
  return chosen;
}

const std::vector<Routing>& routings() {
  static const std::vector<Routing> table{
      {.experts = 8, .chosen = 2, .end_held = 8},
      {.experts = 12, .chosen = 3, .groups = 4, .chosen_groups = 2, .scale = 16, .end_held = 12},
      {.experts = 16,
       .chosen = 4,
       .groups = 4,
       .chosen_groups = 2,
       .score = Routing::Score::sigmoid,
       .group_score = Routing::GroupScore::best_two,
       .normalised = true,
       .scale = 2.5,
       .end_held = 16},
      {.experts = 5, .chosen = 5, .normalised = true, .end_held = 5},
      {.experts = 6, .chosen = 1, .score = Routing::Score::sigmoid, .end_held = 6},
  };
  return table;
}

TEST(Routing, ChoosesAsThePapersSay) {
  mx::random::seed(3);
  for (const Routing& r : routings()) {
    for (const bool biased : {false, true}) {
      const int rows = 40;
      const mx::array logits = mx::random::normal({rows, r.experts}, mx::float32, std::nullopt, cpu);
      const mx::array bias = mx::random::normal({r.experts}, mx::float32, std::nullopt, cpu);
      const auto routes = route(logits, biased ? std::optional(bias) : std::nullopt, r, cpu);
      const auto all = values<float>(logits), b = biased ? values<float>(bias) : std::vector<float>{};
      const auto ids = values<std::int32_t>(routes.ids);
      const auto weights = values<float>(routes.weights);
      for (int t = 0; t < rows; ++t) {
        const auto expected =
            expected_choice({all.begin() + t * r.experts, all.begin() + (t + 1) * r.experts}, b, r);
        std::map<int, double> made;
        for (int k = 0; k < r.chosen; ++k) made[ids[t * r.chosen + k]] = weights[t * r.chosen + k];
        ASSERT_EQ(made.size(), expected.size());
        for (const auto& [id, weight] : expected) {
          ASSERT_TRUE(made.contains(id));
          EXPECT_NEAR(made[id], weight, 1e-5 * r.scale);
        }
      }
    }
  }
}

TEST(Routing, ExpertsThatAreNotHeldAreNone) {
  Routing r = routings()[0];
  const mx::array logits = mx::random::normal({30, r.experts}, mx::float32, std::nullopt, cpu);
  const auto all = route(logits, std::nullopt, r, cpu);
  r.first_held = 3;
  r.end_held = 6;
  const auto part = route(logits, std::nullopt, r, cpu);
  EXPECT_EQ(values<float>(part.weights), values<float>(all.weights));
  const auto ids = values<std::int32_t>(all.ids), local = values<std::int32_t>(part.ids);
  for (std::size_t i = 0; i < ids.size(); ++i)
    EXPECT_EQ(local[i], ids[i] >= 3 && ids[i] < 6 ? ids[i] - 3 : -1);
}

TEST(Routing, OfEqualScoresTheLowerExpert) {
  const auto routes = route(mx::zeros({1, 4}, mx::float32, cpu), std::nullopt,
                            {.experts = 4, .chosen = 3, .end_held = 4}, cpu);
  EXPECT_EQ(values<std::int32_t>(routes.ids), (std::vector<std::int32_t>{0, 1, 2}));
}

// That of the weights by the logits, against differences of the weights of the same experts.
TEST(Routing, GradientsAgreeWithFiniteDifferences) {
  for (const Routing& r : routings()) {
    std::vector<float> logits;
    for (int e = 0; e < r.experts; ++e)
      logits.push_back(static_cast<float>((e * 5) % r.experts) * 0.4F);  // no ties
    const auto loss = [&](const std::vector<float>& at) {
      const auto chosen = expected_choice(at, {}, r);
      double sum = 0;
      for (const auto& [id, weight] : chosen) sum += weight * (id + 1);
      return sum;
    };
    const auto graph = [&](const mx::array& x) {
      const auto routes = route(x, std::nullopt, r, cpu);
      const mx::array factors =
          mx::add(mx::astype(mx::stop_gradient(routes.ids, cpu), mx::float32, cpu), mx::array(1.0F), cpu);
      return mx::sum(mx::multiply(routes.weights, factors, cpu), cpu);
    };
    const auto gradient =
        values<float>(mx::grad(graph)(mx::array(logits.data(), {1, r.experts}, mx::float32)));
    for (int e = 0; e < r.experts; ++e) {
      auto up = logits, down = logits;
      up[e] += 1e-3F;
      down[e] -= 1e-3F;
      EXPECT_NEAR(gradient[e], (loss(up) - loss(down)) / 2e-3, 2e-2) << e;
    }
  }
}

TEST(Routing, WeightedSumsAddTheWeightedChoices) {
  const mx::array x = mx::random::normal({3, 2, 5}, mx::float32, std::nullopt, cpu);
  const mx::array w = mx::random::normal({3, 2}, mx::float32, std::nullopt, cpu);
  const auto y = values<float>(weighted_sum(x, w, cpu)), xs = values<float>(x), ws = values<float>(w);
  for (int t = 0; t < 3; ++t) {
    for (int j = 0; j < 5; ++j)
      EXPECT_NEAR(y[t * 5 + j], xs[t * 10 + j] * ws[t * 2] + xs[t * 10 + 5 + j] * ws[t * 2 + 1], 1e-6);
  }
}

// By what routes of all experts say, on ranks that hold them all, the first or the last.
TEST(Routing, CountsTheTokensOfEachExpertInPlaceOfTheBiasGradient) {
  mx::random::seed(5);
  for (const Routing& whole : routings()) {
    const mx::array logits = mx::random::normal({40, whole.experts}, mx::float32, std::nullopt, cpu);
    const mx::array bias = mx::random::normal({whole.experts}, mx::float32, std::nullopt, cpu);
    std::vector<float> expected(static_cast<std::size_t>(whole.experts));
    for (const int id : values<std::int32_t>(route(logits, bias, whole, cpu).ids)) ++expected[id];
    for (const auto& [first, end] : {std::pair(0, whole.experts), {0, 3}, {3, whole.experts}}) {
      Routing part = whole;
      part.first_held = first;
      part.end_held = end;
      const auto loss = [&](const mx::array& b) {
        return mx::multiply(mx::sum(route(logits, b, part, cpu).weights, cpu), mx::array(7.0F), cpu);
      };
      const auto load = values<float>(mx::grad(loss)(bias));
      for (int e = 0; e < whole.experts; ++e)
        EXPECT_EQ(load[e], e >= first && e < end ? expected[e] : 0) << e << " of " << first << " to " << end;
    }
  }
}

TEST(Routing, WeightedSumsHaveGradientsByBoth) {
  mx::random::seed(3);
  const auto normal = [](mx::Shape shape) {
    return mx::random::normal(shape, mx::float32, std::nullopt, cpu);
  };
  const mx::array c = normal({3, 5});
  const auto loss = [&](const std::vector<mx::array>& in) {
    return mx::sum(mx::multiply(weighted_sum(in[0], in[1], cpu), c, cpu), cpu);
  };
  expect_gradients(loss, {normal({3, 2, 5}), normal({3, 2})}, 1e-2);
}

TEST(Routing, RefusesWhatDoesNotFit) {
  const Routing r = routings()[0];
  EXPECT_THROW(route(mx::zeros({2, 7}), std::nullopt, r, cpu), std::invalid_argument);
  EXPECT_THROW(route(mx::zeros({2, 8}), mx::zeros({7}), r, cpu), std::invalid_argument);
  EXPECT_THROW(weighted_sum(mx::zeros({2, 2, 3}), mx::zeros({2, 3}), cpu), std::invalid_argument);
}

// V3's equations 17 to 20, in double precision.
TEST(SequenceBalance, AddsTheGradientOfTheLossOfEachSequence) {
  mx::random::seed(5);
  const std::vector<int> tokens{7, 1, 12};
  const std::vector<float> weights{0.5F, 2, 1.5F};
  for (const auto score : {Routing::Score::sigmoid, Routing::Score::softmax}) {
    Routing r;
    r.experts = 6;
    r.chosen = 2;
    r.score = score;
    const mx::array logits = mx::random::normal({20, 6}), c = mx::random::normal({20, 6});
    const auto loss = [&](const std::vector<float>& at) {
      double sum = 0;
      int first = 0;
      for (std::size_t i = 0; i < tokens.size(); first += tokens[i++]) {
        std::vector<double> shares(6), often(6);
        for (int t = first; t < first + tokens[i]; ++t) {
          std::vector<double> scores;
          std::vector<std::pair<double, int>> ranked;
          double all = 0;
          for (int e = 0; e < 6; ++e) {
            const double l = at[t * 6 + e];
            scores.push_back(score == Routing::Score::sigmoid ? 1 / (1 + std::exp(-l)) : std::exp(l));
            all += scores.back();
            ranked.emplace_back(-scores.back(), e);
          }
          std::sort(ranked.begin(), ranked.end());
          for (int k = 0; k < 2; ++k) often[ranked[k].second] += 6.0 / 2 / tokens[i];
          for (int e = 0; e < 6; ++e) shares[e] += scores[e] / all / tokens[i];
        }
        for (int e = 0; e < 6; ++e) sum += weights[i] * often[e] * shares[e];
      }
      return sum;
    };
    const auto product = [&](const std::vector<mx::array>& at) {
      return std::vector{with_sequence_balance(at[0], r, tokens, weights, cpu)};
    };
    const auto gradient = values<float>(mx::vjp(product, {logits}, {c}).second[0]), given = values<float>(c);
    auto at = values<float>(logits);
    for (std::size_t i = 0; i < at.size(); ++i) {
      constexpr float h = 1e-3F;
      const float value = at[i];
      at[i] = value + h;
      const double up = loss(at);
      at[i] = value - h;
      const double down = loss(at);
      at[i] = value;
      EXPECT_NEAR(gradient[i] - given[i], (up - down) / (2 * h), 2e-3) << i;
    }
  }
}

}  // namespace
}  // namespace tandem::kernels
