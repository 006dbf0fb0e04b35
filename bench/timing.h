// What the benchmarks of a GPU measure with: the device, a clock, a median.
#pragma once

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace tandem {

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

inline bool has_gpu() {
  const bool there = mlx::core::is_available(mlx::core::Device::gpu);
  if (!there) fmt::print(stderr, "MLX finds no GPU on this machine\n");
  return there;
}

}  // namespace tandem
