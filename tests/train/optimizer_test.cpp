#include "train/optimizer.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include "base/error.h"
#include "train/schedule.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

float first_of(const std::vector<mx::array>& arrays) {
  mx::array value = arrays.front();
  value.eval();
  return value.data<float>()[0];
}

std::vector<mx::array> one(float value) { return {mx::full({1}, value, mx::float32)}; }

// Two steps from 1 with gradients 0.5 and -0.25 at rate 0.1, worked out by hand from the papers' formulas.
struct Case {
  OptimizerOptions options;
  float first, second;
};

class OptimizerTest : public testing::TestWithParam<Case> {};

TEST_P(OptimizerTest, FollowsItsPaper) {
  Optimizer optimizer(GetParam().options);
  auto x = optimizer.step(one(1), one(0.5F), 0.1);
  EXPECT_NEAR(first_of(x), GetParam().first, 1e-6);
  x = optimizer.step(x, one(-0.25F), 0.1);
  EXPECT_NEAR(first_of(x), GetParam().second, 1e-6);
}

INSTANTIATE_TEST_SUITE_P(
    Rules, OptimizerTest,
    testing::Values(
        // x·(1 − 0.1·0.01) − 0.1·m̂/√v̂: m̂/√v̂ is 1, then (0.02/0.19)/√(0.00031225/0.001999) = 0.266338
        Case{{.name = "adamw"}, 0.899F, 0.899F * 0.999F - 0.1F * 0.2663372F},
        // x − 0.1·g, then − 0.1·(0.9·0.5 − 0.25)
        Case{{.name = "sgd", .weight_decay = 0}, 0.95F, 0.93F},
        Case{{.name = "sgd", .beta1 = 0, .weight_decay = 0}, 0.95F, 0.975F},
        // the sign of 0.9·m + 0.1·g: +, then + (m = 0.0005 after the first: 0.00045 − 0.025 < 0: −)
        Case{{.name = "lion", .weight_decay = 0}, 0.9F, 1.0F}),
    [](const auto& info) { return info.param.options.name + std::to_string(info.index); });

TEST(OptimizerTest, GoesOnAsIfItHadNotStopped) {
  Optimizer whole(OptimizerOptions{}), resumed(OptimizerOptions{});
  auto x = whole.step(one(1), one(0.5F), 0.1);
  resumed.restore(whole.steps(), whole.state());
  const auto a = whole.step(x, one(0.3F), 0.1), b = resumed.step(x, one(0.3F), 0.1);
  EXPECT_EQ(first_of(a), first_of(b));
}

TEST(OptimizerTest, NamesTheRulesWhereThereIsNoSuchOne) {
  EXPECT_THROW(Optimizer({.name = "adam"}), InputError);
}

TEST(Schedule, RisesAndFalls) {
  const Schedule cosine{.peak = 1, .name = "cosine", .warm_up = 4};
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 1, 104), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 4, 104), 1);
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 5, 104), 1);
  EXPECT_NEAR(learning_rate(cosine, 55, 104), 0.5, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 2, .name = "linear"}, 6, 10), 1);
  const Schedule wsd{.peak = 1, .name = "wsd"};
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 80, 100), 1);
  EXPECT_NEAR(learning_rate(wsd, 91, 100), 0.5, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 3}, 77, 100), 3);
}

}  // namespace
}  // namespace tandem::train
