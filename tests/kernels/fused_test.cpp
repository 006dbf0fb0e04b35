#include "kernels/fused.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/primitives.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include "kernels/linear.h"
#include "kernels/pointwise.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

const mx::Device cpu = mx::Device::cpu;

struct Weights {
  Matrix gate, up, down;
  mx::array norm;
};

Weights random_weights() {
  const auto matrix = [](int out, int in) {
    return pack({mx::random::normal({out, in}), std::nullopt, nullptr});
  };
  return {matrix(48, 32), matrix(48, 32), matrix(32, 48), mx::random::normal({32})};
}

// A feed-forward with its residual: x + y, and what is added to it next.
std::vector<mx::array> feed_forward(const mx::array& x, const mx::array& y, const Weights& w) {
  const auto normed = add_rms_norm(x, y, w.norm, 1e-5F, cpu);
  const auto projected = linear(normed.norm, {w.gate, w.up}, cpu);
  return {normed.sum, linear(silu_multiply(projected[0], projected[1], cpu), w.down, cpu)};
}

bool same(const mx::array& a, const mx::array& b) { return mx::array_equal(a, b).item<bool>(); }

TEST(Fused, GivesTheSameBitsByOneOperation) {
  const Weights w = random_weights();
  const mx::array x = mx::random::normal({5, 32}), y = mx::random::normal({5, 32});
  const auto apart = feed_forward(x, y, w), together = fused(feed_forward(x, y, w));
  ASSERT_EQ(together.size(), 2U);
  EXPECT_STREQ(together[0].primitive().name(), "TandemFused");
  EXPECT_EQ(&together[0].primitive(), &together[1].primitive());
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(same(apart[i], together[i])) << i;
}

// A chain of them, with operations of MLX between, as layers and reductions are.
TEST(Fused, ReadsWhatOthersAndEarlierOnesGave) {
  const Weights w = random_weights();
  const auto chain = [&](bool fuse) {
    mx::array x = mx::ones({3, 32}), y = mx::full({3, 32}, 0.5F);
    for (int layer = 0; layer < 4; ++layer) {
      auto both = feed_forward(x, y, w);
      if (fuse) both = fused(both);
      x = both[0];
      y = mx::multiply(both[1], mx::array(0.25F));
    }
    return mx::add(x, y);
  };
  EXPECT_TRUE(same(chain(true), chain(false)));
}

TEST(Fused, PassesOnWhatItDoesNotCompute) {
  const mx::array x = mx::ones({2, 32}), y = mx::add(x, x);
  const auto unchanged = fused({x, y});
  EXPECT_EQ(unchanged[0].id(), x.id());
  EXPECT_EQ(unchanged[1].id(), y.id());
  const Weights w = random_weights();
  const auto mixed = fused({y, feed_forward(x, y, w)[1]});
  EXPECT_EQ(mixed[0].id(), y.id());
  EXPECT_TRUE(same(mixed[1], feed_forward(x, y, w)[1]));
}

TEST(Fused, HasTheGradientOfItsOperations) {
  const Weights w = random_weights();
  const mx::array y = mx::random::normal({3, 32}), c = mx::random::normal({3, 32});
  const auto loss = [&](bool fuse) {
    return [&, fuse](const mx::array& x) {
      auto both = feed_forward(x, y, w);
      if (fuse) both = fused(both);
      return mx::sum(mx::multiply(mx::add(both[0], both[1]), c));
    };
  };
  const mx::array at = mx::random::normal({3, 32});
  const mx::array expected = mx::grad(loss(false))(at), found = mx::grad(loss(true))(at);
  EXPECT_TRUE(mx::allclose(found, expected, 1e-5, 1e-6).item<bool>());
}

// What has no gradient, as ids have none, is in the way of no other's.
TEST(Fused, HasGradientsByTheWantedInputsAlone) {
  const Weights w = random_weights();
  const Matrix table = pack({mx::random::normal({10, 32}), std::nullopt, nullptr});
  const mx::array ids({3, 7}, {2});
  const auto loss = [&](bool fuse) {
    return [&, fuse](const mx::array& norm) {
      const mx::array y = linear(rms_norm(rows(table, ids, cpu), norm, 1e-5F, cpu), w.gate, cpu);
      return mx::sum(mx::square(fuse ? fused({y}).front() : y));
    };
  };
  EXPECT_TRUE(
      mx::allclose(mx::grad(loss(true))(w.norm), mx::grad(loss(false))(w.norm), 1e-5, 1e-6).item<bool>());
}

}  // namespace
}  // namespace tandem::kernels
