#include "train/optimizer.h"

#include <gtest/gtest.h>
#include <mlx/linalg.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <cmath>

#include "base/error.h"
#include "parallel/tcp_group.h"
#include "train/muon.h"
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

Optimizer optimizer_of(const OptimizerOptions& options, std::vector<int> shape = {1},
                       const std::string& name = "model.layers.0.mlp.up_proj.weight") {
  return {options, {{name, std::move(shape)}}, parallel::single_rank_group()};
}

std::vector<float> numbers(mx::array x) {
  x = mx::contiguous(x);
  x.eval();
  return {x.data<float>(), x.data<float>() + x.size()};
}

// Two steps from 1 with gradients 0.5 and -0.25 at rate 0.1, worked out by hand from the papers' formulas.
struct Case {
  OptimizerOptions options;
  float first, second;
};

class OptimizerTest : public testing::TestWithParam<Case> {};

TEST_P(OptimizerTest, FollowsItsPaper) {
  auto optimizer = optimizer_of(GetParam().options);
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
  auto whole = optimizer_of({}), resumed = optimizer_of({});
  auto x = whole.step(one(1), one(0.5F), 0.1);
  resumed.restore(whole.steps());
  resumed.restore(0, whole.state(0));
  const auto a = whole.step(x, one(0.3F), 0.1), b = resumed.step(x, one(0.3F), 0.1);
  EXPECT_EQ(first_of(a), first_of(b));
}

TEST(OptimizerTest, NamesTheRulesWhereThereIsNoSuchOne) {
  EXPECT_THROW(optimizer_of({.name = "adam"}), InputError);
  EXPECT_THROW(optimizer_of({.name = "lion", .bits = 8}), InputError);
  EXPECT_THROW(optimizer_of({.bits = 4}), InputError);
}

// Numbers without a pattern, of about `size`.
mx::array some(const mx::Shape& shape, int seed, float size = 1) {
  return mx::multiply(mx::random::normal(shape, mx::float32, mx::random::key(seed)), mx::array(size));
}

mx::array scaled(const mx::array& x, float factor) { return mx::multiply(x, mx::array(factor)); }

// From 10^-decades to 1.
mx::array of_sizes(const mx::Shape& shape, float decades) {
  return mx::power(mx::array(10.0F),
                   mx::random::uniform(-decades, 0, shape, mx::float32, mx::random::key(1)));
}

using Matrix = std::vector<std::vector<double>>;

Matrix matrix(const mx::array& x) {
  const auto flat = numbers(x);
  Matrix rows;
  for (int i = 0; i < x.shape(0); ++i)
    rows.emplace_back(flat.begin() + i * x.shape(1), flat.begin() + (i + 1) * x.shape(1));
  return rows;
}

void expect_near(const mx::array& x, const Matrix& expected, double tolerance) {
  const auto found = matrix(x);
  for (std::size_t i = 0; i < expected.size(); ++i)
    for (std::size_t j = 0; j < expected[i].size(); ++j)
      EXPECT_NEAR(found[i][j], expected[i][j], tolerance) << i << ", " << j;
}

TEST(Adafactor, FollowsItsPaper) {
  constexpr int n = 3, m = 4;
  constexpr double rate = 0.1, momentum = 0.5;
  auto plain = optimizer_of({.name = "adafactor", .beta1 = 0, .weight_decay = 0}, {n, m});
  auto averaging = optimizer_of({.name = "adafactor", .beta1 = momentum, .weight_decay = 0}, {n, m});
  mx::array x = some({n, m}, 0), y = x;
  Matrix expected = matrix(x), with_momentum = expected, mean(n, std::vector<double>(m));
  std::vector<double> rows(n), columns(m);
  for (int step = 1; step <= 3; ++step) {
    const mx::array gradient = some({n, m}, step, 0.1F * static_cast<float>(step * step));
    x = plain.step({x}, {gradient}, rate).front();
    y = averaging.step({y}, {gradient}, rate).front();
    const double beta = 1 - std::pow(step, -0.8);
    const Matrix g = matrix(gradient);
    for (double& row : rows) row *= beta;
    for (double& column : columns) column *= beta;
    double all = 0, squares = 0;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < m; ++j) {
        rows[i] += (1 - beta) * g[i][j] * g[i][j] / m;
        columns[j] += (1 - beta) * g[i][j] * g[i][j] / n;
      }
    for (const double row : rows) all += row / n;
    Matrix change = g;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < m; ++j) {
        change[i][j] /= std::sqrt(rows[i] * columns[j] / all);
        squares += change[i][j] * change[i][j];
      }
    const double clip = std::max(1.0, std::sqrt(squares / (n * m)));
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < m; ++j) {
        expected[i][j] -= rate * change[i][j] / clip;
        mean[i][j] = momentum * mean[i][j] + (1 - momentum) * rate * change[i][j] / clip;
        with_momentum[i][j] -= mean[i][j];
      }
    expect_near(x, expected, 1e-6);
    expect_near(y, with_momentum, 1e-6);
  }
  EXPECT_EQ(plain.state_bytes(), (n + m) * sizeof(float));
}

TEST(Adafactor, KeepsTheSquaresOfAVector) {
  auto optimizer = optimizer_of({.name = "adafactor", .beta1 = 0, .weight_decay = 0});
  auto x = optimizer.step(one(1), one(0.5F), 0.1);
  EXPECT_NEAR(first_of(x), 0.9F, 1e-6);
  x = optimizer.step(x, one(-0.25F), 0.1);
  const double fresh = std::pow(2, -0.8), square = (1 - fresh) * 0.25 + fresh * 0.0625;
  EXPECT_NEAR(first_of(x), 0.9 + 0.1 * 0.25 / std::sqrt(square), 1e-6);
}

Matrix product(const Matrix& a, const Matrix& b, bool turned) {
  const std::size_t columns = turned ? b.size() : b[0].size();
  Matrix c(a.size(), std::vector<double>(columns));
  for (std::size_t i = 0; i < a.size(); ++i)
    for (std::size_t j = 0; j < columns; ++j)
      for (std::size_t k = 0; k < a[0].size(); ++k) c[i][j] += a[i][k] * (turned ? b[j][k] : b[k][j]);
  return c;
}

Matrix combined(double a, const Matrix& x, double b, const Matrix& y) {
  Matrix sum = x;
  for (std::size_t i = 0; i < x.size(); ++i)
    for (std::size_t j = 0; j < x[0].size(); ++j) sum[i][j] = a * x[i][j] + b * y[i][j];
  return sum;
}

Matrix newton_schulz(Matrix x) {
  double squares = 0;
  for (const auto& row : x)
    for (const double value : row) squares += value * value;
  x = combined(1 / std::sqrt(squares), x, 0, x);
  for (int i = 0; i < 5; ++i) {
    const Matrix a = product(x, x, true), b = combined(-4.7750, a, 2.0315, product(a, a, false));
    x = combined(3.4445, x, 1, product(b, x, false));
  }
  return x;
}

TEST(Muon, FollowsItsAuthor) {
  constexpr double rate = 0.1, decay = 0.5, momentum = 0.95;
  auto wide = optimizer_of({.name = "muon", .beta1 = momentum, .weight_decay = decay}, {3, 5});
  auto tall = optimizer_of({.name = "muon", .beta1 = momentum, .weight_decay = decay}, {5, 3});
  mx::array x = some({3, 5}, 0), turned = mx::transpose(x);
  Matrix expected = matrix(x), mean(3, std::vector<double>(5));
  for (int step = 1; step <= 3; ++step) {
    const mx::array gradient = some({3, 5}, step);
    x = wide.step({x}, {gradient}, rate).front();
    turned = tall.step({turned}, {mx::transpose(gradient)}, rate).front();
    mean = combined(momentum, mean, 1 - momentum, matrix(gradient));
    const Matrix ahead = combined(momentum, mean, 1 - momentum, matrix(gradient));
    expected = combined(1 - rate * decay, expected, -rate * 0.2 * std::sqrt(5), newton_schulz(ahead));
    expect_near(x, expected, 1e-5);
    expect_near(mx::transpose(turned), expected, 1e-5);
  }
}

TEST(Muon, BringsSingularValuesNearOne) {
  const mx::array stack = orthogonalised(some({2, 16, 48}, 1, 1e-3F));
  const mx::array one =
      orthogonalised(mx::squeeze(mx::slice(some({2, 16, 48}, 1, 1e-3F), {1, 0, 0}, {2, 16, 48}), 0));
  const auto of_stack = numbers(stack), alone = numbers(one);
  for (std::size_t i = 0; i < alone.size(); ++i) EXPECT_NEAR(of_stack[alone.size() + i], alone[i], 1e-5);
  for (const float value : numbers(mx::linalg::svd(one, /*compute_uv=*/false, mx::Device::cpu).front())) {
    EXPECT_GT(value, 0.6F);
    EXPECT_LT(value, 1.3F);
  }
  for (const float value : numbers(orthogonalised(mx::zeros({3, 4})))) EXPECT_EQ(value, 0);
}

TEST(Muon, LeavesEmbeddingsVectorsAndRoutersToAdamW) {
  for (const auto& [name, shape] : std::vector<std::pair<std::string, std::vector<int>>>{
           {"model.embed_tokens.weight", {4, 4}},
           {"lm_head.weight", {4, 4}},
           {"model.layers.0.mlp.gate.weight", {4, 4}},
           {"model.layers.0.input_layernorm.weight", {4}}}) {
    auto one = optimizer_of({.name = "muon", .beta1 = usual_beta1("muon")}, shape, name);
    auto other = optimizer_of({}, shape, name);
    const mx::array x = some({shape.begin(), shape.end()}, 1), g = some(x.shape(), 2);
    EXPECT_EQ(numbers(one.step({x}, {g}, 0.1).front()), numbers(other.step({x}, {g}, 0.1).front())) << name;
  }
}

float root_mean_square(const mx::array& x) { return mx::sqrt(mx::mean(mx::square(x))).item<float>(); }

// Rows of gradients of very different sizes in the same blocks, one without any; after 100 steps half of the
// columns have a quarter of them.
TEST(EightBits, FollowAdamW) {
  constexpr int n = 64;
  constexpr float rate = 1e-3F;
  const mx::array ones = mx::ones({n / 2}), quiet = mx::concatenate({scaled(ones, 0.25F), ones}, 0);
  for (const float decades : {1.0F, 3.0F, 6.0F}) {
    auto exact = optimizer_of({.weight_decay = 0}, {n, n});
    auto packed = optimizer_of({.weight_decay = 0, .bits = 8}, {n, n});
    const mx::array sizes = mx::concatenate({mx::zeros({1, 1}), of_sizes({n - 1, 1}, decades)}, 0);
    mx::array x = mx::zeros({n, n}), y = x;
    for (int step = 1; step <= 500; ++step) {
      mx::array gradient = mx::multiply(mx::add(some({n, n}, step), mx::array(0.3F)), sizes);
      if (step > 100) gradient = mx::multiply(gradient, quiet);
      x = exact.step({x}, {gradient}, rate).front();
      const mx::array before = y;
      y = packed.step({y}, {gradient}, rate).front();
      EXPECT_LT(mx::max(mx::abs(mx::subtract(y, before))).item<float>(), 10 * rate);
    }
    const float apart = root_mean_square(mx::subtract(x, y)) / root_mean_square(x);
    EXPECT_LT(apart, decades < 6 ? 0.1F : 0.4F);
    const mx::array squares = mx::maximum(exact.state(0)[1], mx::array(1e-30F));
    const mx::array ratio = mx::sqrt(mx::divide(packed.state(0)[1], squares));
    EXPECT_NEAR(mx::mean(mx::slice(ratio, {1, 0}, {n, n / 2})).item<float>(), 1, 0.05);
    EXPECT_EQ(packed.state_bytes(), 2 * n * n + 2 * sizeof(float) * n * n / 256);
  }
}

TEST(EightBits, AreTheSameAfterAStop) {
  const OptimizerOptions options{.bits = 8};
  auto whole = optimizer_of(options, {30, 50}), resumed = optimizer_of(options, {30, 50});
  mx::array x = some({30, 50}, 0);
  for (int step = 1; step <= 5; ++step) x = whole.step({x}, {some({30, 50}, step)}, 0.01).front();
  resumed.restore(whole.steps());
  resumed.restore(0, whole.state(0));
  mx::array y = x;
  for (int step = 6; step <= 8; ++step) {
    x = whole.step({x}, {some({30, 50}, step)}, 0.01).front();
    y = resumed.step({y}, {some({30, 50}, step)}, 0.01).front();
  }
  EXPECT_EQ(numbers(x), numbers(y));
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
