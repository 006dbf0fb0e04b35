#include "kernels/gather_linear.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <cmath>
#include <functional>

#include "kernels/fixture.h"
#include "kernels/gradients.h"
#include "kernels/linear.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

constexpr int experts_count = 6, out = 70, in = 128;

std::vector<float> floats(mx::array array) {
  array = mx::contiguous(array, false, mx::Device::cpu);
  mx::eval(array);
  return {array.data<float>(), array.data<float>() + array.size()};
}

Experts dense_experts(mx::Dtype dtype) {
  return {mx::astype(mx::random::normal({experts_count, out, in}), dtype), std::nullopt, {}};
}

Experts quantised_experts(int bits) {
  const auto parts = mx::quantize(mx::random::normal({experts_count, out, in}), 64, bits);
  return {parts[0], Affine{parts[1], parts[2], 64, bits}, {}};
}

std::vector<Experts> every_kind() {
  return {dense_experts(mx::float32), dense_experts(mx::float16), dense_experts(mx::bfloat16),
          quantised_experts(4), quantised_experts(8)};
}

// Row t's choices: k different experts; expert 5 is nobody's.
mx::array choices(int tokens, int k) {
  std::vector<int> ids;
  for (int t = 0; t < tokens; ++t) {
    for (int j = 0; j < k; ++j) ids.push_back((t * t + j * 2 + t / 3) % 5);
  }
  return mx::array(ids.data(), {tokens, k}, mx::int32);
}

mx::array run(const mx::array& x, const Experts& experts, const mx::array& ids) {
  return gather_linear(x, experts, ids, mx::Device::cpu);
}

class GatherLinearTest : public KernelsTest {};

TEST_F(GatherLinearTest, EachRowIsAsLinearGivesItAlone) {
  for (const auto activations : {Activations::automatic, Activations::float32}) {
    use_activations(activations);
    for (const auto& kind : every_kind()) {
      const Experts packed = pack(kind);
      EXPECT_EQ(packed.count(), experts_count);
      EXPECT_EQ(packed.in(), in);
      EXPECT_EQ(kind.in(), in);
      for (const char* name :
           {"portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_float32", "neon", "neon_i8mm"}) {
        if (!find_loops(name)) continue;
        use_loops(name);
        for (const int tokens : {1, 2, 29}) {
          const int k = 3;
          set_threads(tokens % 3 + 1);
          const mx::array ids = choices(tokens, k);
          const mx::array shared = mx::random::normal({tokens, in}),
                          own = mx::random::normal({tokens, k, in});
          const auto y = floats(run(shared, packed, ids)), z = floats(run(own, packed, ids));
          for (int t = 0; t < tokens; ++t) {
            for (int j = 0; j < k; ++j) {
              const Matrix expert{std::nullopt, std::nullopt,
                                  packed.packed[mx::slice(ids, {t, j}, {t + 1, j + 1}).item<int>()]};
              const int at = (t * k + j) * out;
              const auto row =
                  floats(linear(mx::slice(shared, {t, 0}, {t + 1, in}), expert, mx::Device::cpu));
              ASSERT_EQ(std::vector<float>(y.begin() + at, y.begin() + at + out), row) << name << t << j;
              const auto other =
                  floats(linear(mx::reshape(mx::slice(own, {t, j, 0}, {t + 1, j + 1, in}), {1, in}), expert,
                                mx::Device::cpu));
              ASSERT_EQ(std::vector<float>(z.begin() + at, z.begin() + at + out), other) << name << t << j;
            }
          }
        }
      }
    }
  }
}

TEST_F(GatherLinearTest, RefusesQuantisedArraysThatAreNotPacked) {
  const Experts experts = quantised_experts(4);
  EXPECT_THROW(run(mx::zeros({2, in}), experts, choices(2, 1)), std::invalid_argument);
  const mx::array x = mx::zeros({2, experts_count * in});
  EXPECT_THROW(linear_by_head(x, experts, mx::Device::cpu), std::invalid_argument);
}

TEST_F(GatherLinearTest, DenseArraysArePackedOnTheWay) {
  const mx::array ids = choices(9, 2), x = mx::random::normal({9, in});
  for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    const Experts dense = dense_experts(dtype);
    EXPECT_EQ(floats(run(x, dense, ids)), floats(run(x, pack(dense), ids)));
  }
}

TEST_F(GatherLinearTest, ReadsTheChosenExpertsAlone) {
  const Experts experts = pack(quantised_experts(4));
  const std::size_t expert_bytes = experts.packed[0]->bytes();
  const mx::array x = mx::random::normal({1, in});
  for (const int threads : {1, 2}) {
    set_threads(threads);
    for (const int k : {1, 2, 5}) {
      const auto before = panel_bytes_read();
      mx::eval(run(x, experts, mx::reshape(mx::arange(k, mx::int32), {1, k})));
      EXPECT_EQ(panel_bytes_read() - before, k * expert_bytes);
    }
  }
}

TEST_F(GatherLinearTest, AnIdOfNoExpertGivesZeros) {
  const Experts experts = pack(dense_experts(mx::float32));
  const mx::array ids({1, experts_count, -1, 0}, {2, 2}), x = mx::random::normal({2, in});
  const auto y = floats(run(x, experts, ids));
  for (int i = 0; i < 4 * out; ++i) EXPECT_EQ(y[i] == 0, i >= out && i < 3 * out) << i;
}

TEST_F(GatherLinearTest, SumsOverTheChoices) {
  for (const auto& kind : every_kind()) {
    const Experts packed = pack(kind);
    for (const int tokens : {1, 29}) {
      set_threads(tokens % 3 + 1);
      const mx::array ids = choices(tokens, 3), x = mx::random::normal({tokens, 3, in}),
                      weights = mx::random::normal({tokens, 3});
      const mx::array y = gather_linear_sum(x, weights, packed, ids, mx::Device::cpu);
      EXPECT_EQ(y.shape(), (mx::Shape{tokens, out}));
      const mx::array scaled = mx::multiply(x, mx::expand_dims(weights, 2));
      EXPECT_TRUE(mx::allclose(y, mx::sum(run(scaled, packed, ids), 1), 1e-5, 1e-4).item<bool>());
    }
  }
}

TEST_F(GatherLinearTest, SumsAreInTheOrderOfTheExperts) {
  const Experts packed = pack(dense_experts(mx::float32));
  const mx::array ids({0, 1, 2, 4, 3, 1, 2, 5, 0, 3, 0, 4}, {4, 3}), x = mx::random::normal({4, 3, in}),
                                                                     weights = mx::random::normal({4, 3});
  const auto turned = [](const mx::array& a) { return mx::take(a, mx::array({2, 1, 0}), 1); };
  EXPECT_EQ(floats(gather_linear_sum(x, weights, packed, ids, mx::Device::cpu)),
            floats(gather_linear_sum(turned(x), turned(weights), packed, turned(ids), mx::Device::cpu)));
}

TEST_F(GatherLinearTest, ATokenAmongThousandsIsAsAlone) {
  const int tokens = 4000;  // more rows than are brought together at once
  const Experts packed = pack(dense_experts(mx::float32));
  const mx::array ids = choices(tokens, 2), x = mx::random::normal({tokens, 2, in}),
                  weights = mx::random::normal({tokens, 2});
  set_threads(3);
  const auto all = floats(gather_linear_sum(x, weights, packed, ids, mx::Device::cpu)),
             every = floats(run(x, packed, ids));
  for (int t = 0; t < tokens; t += 199) {
    const auto part = [t](const mx::array& a) {
      mx::Shape first(a.ndim(), 0), end = a.shape();
      first[0] = t;
      end[0] = t + 1;
      return mx::slice(a, first, end);
    };
    const auto sum = floats(gather_linear_sum(part(x), part(weights), packed, part(ids), mx::Device::cpu));
    EXPECT_EQ(std::vector<float>(all.begin() + t * out, all.begin() + (t + 1) * out), sum) << t;
    const auto rows = floats(run(part(x), packed, part(ids)));
    EXPECT_EQ(std::vector<float>(every.begin() + t * 2 * out, every.begin() + (t + 1) * 2 * out), rows) << t;
  }
}

TEST_F(GatherLinearTest, OfNoExpertNothingIsAdded) {
  const Experts experts = pack(dense_experts(mx::float32));
  const mx::array ids({1, experts_count, -1, -1}, {2, 2}), x = mx::random::normal({2, 2, in}),
                                                           weights({2.0F, 3.0F, 4.0F, 5.0F}, {2, 2});
  const auto y = floats(gather_linear_sum(x, weights, experts, ids, mx::Device::cpu));
  const mx::array first = mx::multiply(mx::slice(x, {0, 0, 0}, {1, 1, in}), mx::array(2.0F));
  const auto alone = floats(run(first, experts, mx::slice(ids, {0, 0}, {1, 1})));
  EXPECT_EQ(std::vector<float>(y.begin(), y.begin() + out), alone);
  for (int i = out; i < 2 * out; ++i) EXPECT_EQ(y[i], 0) << i;
}

TEST_F(GatherLinearTest, SumsHaveGradientsByRowsWeightsAndExperts) {
  use_activations(Activations::float32);
  const mx::array ids({0, 2, 3, 5, -1, 1, 4, 3}, {4, 2}), c = mx::random::normal({4, out});
  const auto loss = [&](const std::vector<mx::array>& at, const Experts& experts) {
    return mx::sum(mx::multiply(gather_linear_sum(at[0], at[1], experts, ids, mx::Device::cpu), c));
  };
  for (const auto& kind : every_kind()) {
    const Experts packed = pack(kind);
    expect_gradients([&](const std::vector<mx::array>& at) { return loss(at, packed); },
                     {mx::random::normal({4, 2, in}), mx::random::normal({4, 2})}, 0.2);
  }
  expect_gradients(
      [&](const std::vector<mx::array>& at) {
        return loss(at, {at[2], std::nullopt, {}});
      },
      {mx::random::normal({4, 2, in}), mx::random::normal({4, 2}),
       mx::random::normal({experts_count, out, in})},
      0.2);
}

TEST_F(GatherLinearTest, HeadsAreTheExpertsOfTheirOwn) {
  const Experts experts = pack(dense_experts(mx::float32));
  const int rows = 3;
  std::vector<int> own;
  for (int i = 0; i < rows * experts_count; ++i) own.push_back(i % experts_count);
  const mx::array ids(own.begin(), {rows, experts_count}), x = mx::random::normal({rows, experts_count, in});
  EXPECT_EQ(floats(linear_by_head(mx::reshape(x, {rows, experts_count * in}), experts, mx::Device::cpu)),
            floats(run(x, experts, ids)));
}

TEST_F(GatherLinearTest, RefusesWhatDoesNotFit) {
  const Experts experts = dense_experts(mx::float32);
  EXPECT_THROW(run(mx::zeros({2, in + 1}), experts, choices(2, 2)), std::invalid_argument);
  EXPECT_THROW(run(mx::zeros({3, in}), experts, choices(2, 2)), std::invalid_argument);
  EXPECT_THROW(run(mx::zeros({2, 3, in}), experts, choices(2, 2)), std::invalid_argument);
  EXPECT_THROW(run(mx::zeros({2, in}), quantised_experts(4), choices(2, 2)), std::invalid_argument);
  const auto sum = [&](mx::Shape x, mx::Shape weights) {
    return gather_linear_sum(mx::zeros(x), mx::zeros(weights), experts, choices(2, 2), mx::Device::cpu);
  };
  EXPECT_THROW(sum({2, in}, {2, 2}), std::invalid_argument);
  EXPECT_THROW(sum({2, 2, in}, {2, 3}), std::invalid_argument);
  EXPECT_THROW(sum({2, 2, in + 1}, {2, 2}), std::invalid_argument);
}

TEST_F(GatherLinearTest, GradientsAgreeWithFiniteDifferences) {
  use_activations(Activations::float32);  // rounding to int8 has steps
  const mx::array ids = choices(4, 2), c = mx::random::normal({4, 2, out});
  using Forward = std::function<mx::array(const std::vector<mx::array>&)>;
  const auto check = [&](const std::vector<mx::array>& at, const Forward& forward) {
    expect_gradients([&](const std::vector<mx::array>& in) { return mx::sum(mx::multiply(forward(in), c)); },
                     at, 0.2);
  };
  for (const auto& kind : every_kind()) {
    const Experts packed = pack(kind);
    check({mx::random::normal({4, in})},
          [&](const std::vector<mx::array>& at) { return run(at[0], packed, ids); });
    check({mx::random::normal({4, 2, in})},
          [&](const std::vector<mx::array>& at) { return run(at[0], packed, ids); });
  }
  check({mx::random::normal({4, in}), mx::random::normal({experts_count, out, in})}, [&](const auto& at) {
    return run(at[0], {at[1], std::nullopt, {}}, ids);
  });
}

TEST_F(GatherLinearTest, HeadsHaveGradientsByTheirRows) {
  use_activations(Activations::float32);
  const mx::array c = mx::random::normal({4, experts_count * out});
  for (const auto& kind : every_kind()) {
    const Experts heads = pack(kind);
    const auto loss = [&](const std::vector<mx::array>& at) {
      return mx::sum(mx::multiply(linear_by_head(at[0], heads, mx::Device::cpu), c));
    };
    expect_gradients(loss, {mx::random::normal({4, experts_count * in})}, 0.2);
  }
}

TEST_F(GatherLinearTest, HeadsHaveGradientsByTheirWeights) {
  const mx::array c = mx::random::normal({40, experts_count * out}),
                  x = mx::random::normal({40, experts_count * in});
  const auto loss = [&](const std::vector<mx::array>& at) {
    const Experts heads{at[0], std::nullopt, {}};
    return mx::sum(mx::multiply(linear_by_head(x, heads, mx::Device::cpu), c));
  };
  const auto by_head = [](const mx::array& rows, int width) {  // [H, T, width]
    return mx::swapaxes(mx::reshape(rows, {40, experts_count, width}), 0, 1);
  };
  const mx::array found =
      mx::value_and_grad(loss, std::vector{0})({mx::random::normal({experts_count, out, in})}).second.front();
  const mx::array expected = mx::matmul(mx::swapaxes(by_head(c, out), 1, 2), by_head(x, in));
  EXPECT_TRUE(mx::allclose(found, expected, 1e-4, 1e-4).item<bool>());
}

}  // namespace
}  // namespace tandem::kernels
