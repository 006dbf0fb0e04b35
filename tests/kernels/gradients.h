// Gradients beside finite differences.
#pragma once

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <cmath>
#include <functional>
#include <vector>

namespace tandem::kernels {

// That the gradient of `loss`, a scalar, by each of its inputs `at` agrees along a random direction, within 2
// % and `noise`, what float32 leaves of the difference.
inline void expect_gradients(
    const std::function<mlx::core::array(const std::vector<mlx::core::array>&)>& loss,
    const std::vector<mlx::core::array>& at, double noise) {
  namespace mx = mlx::core;
  std::vector<int> argnums;
  for (std::size_t i = 0; i < at.size(); ++i) argnums.push_back(static_cast<int>(i));
  const auto gradients = mx::value_and_grad(loss, argnums)(at).second;
  constexpr float h = 1e-2F;
  for (std::size_t i = 0; i < at.size(); ++i) {
    const mx::array direction = mx::random::normal(at[i].shape());
    auto up = at, down = at;
    up[i] = mx::add(at[i], mx::multiply(direction, mx::array(h)));
    down[i] = mx::subtract(at[i], mx::multiply(direction, mx::array(h)));
    const float rise = mx::subtract(loss(up), loss(down)).item<float>() / (2 * h);
    EXPECT_NEAR(rise, mx::sum(mx::multiply(gradients[i], direction)).item<float>(),
                0.02 * std::abs(rise) + noise);
  }
}

}  // namespace tandem::kernels
