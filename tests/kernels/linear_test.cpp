#include "kernels/linear.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <cmath>
#include <cstring>

#include "kernels/linear_loops.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

std::vector<float> floats(const mx::array& array) {
  mx::array flat = mx::contiguous(mx::astype(array, mx::float32));
  mx::eval(flat);
  return {flat.data<float>(), flat.data<float>() + flat.size()};
}

// Against sums in double; the bound is that of a float32 dot product of n terms, n·2⁻²⁴·Σ|x·w|, with a few
// more for the product's own rounding.
void expect_product(const std::vector<float>& y, const mx::array& x, const mx::array& weight) {
  const auto a = floats(x), w = floats(weight);
  const int rows = x.shape(0), in = x.shape(1), out = weight.shape(0);
  ASSERT_EQ(y.size(), static_cast<std::size_t>(rows) * out);
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < out; ++o) {
      double sum = 0, size = 0;
      for (int i = 0; i < in; ++i) {
        const double term = static_cast<double>(a[r * in + i]) * w[o * in + i];
        sum += term;
        size += std::abs(term);
      }
      ASSERT_NEAR(y[r * out + o], sum, (in + 4) * 0x1p-24 * size + 1e-30) << r << " " << o << " of " << in;
    }
  }
}

TEST(Linear, EqualsTheSumForAnyShapeAndType) {
  for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (const int in : {1, 2, 15, 16, 17, 31, 33, 64, 70}) {
      for (const int out : {1, 3, 4, 5, 9}) {
        for (const int rows : {1, 2, 7}) {
          const mx::array x = mx::random::normal({rows, in}, mx::float32);
          const mx::array w = mx::astype(mx::random::normal({out, in}, mx::float32), dtype);
          expect_product(floats(linear(x, w, mx::Device::cpu)), x, w);
        }
      }
    }
  }
}

TEST(Linear, ARowDoesNotDependOnItsNeighbours) {
  const mx::array x = mx::random::normal({33, 100}, mx::float32);
  const mx::array w = mx::astype(mx::random::normal({13, 100}, mx::float32), mx::bfloat16);
  const auto all = floats(linear(x, w, mx::Device::cpu));
  for (int row = 0; row < 33; ++row) {
    const auto one = floats(linear(mx::slice(x, {row, 0}, {row + 1, 100}), w, mx::Device::cpu));
    EXPECT_EQ(std::memcmp(one.data(), all.data() + row * 13, 13 * sizeof(float)), 0) << row;
  }
}

TEST(Linear, TakesArraysThatAreNotContiguous) {
  const mx::array x = mx::transpose(mx::random::normal({40, 6}, mx::float32));
  const mx::array w = mx::slice(mx::random::normal({20, 40}, mx::float32), {0, 0}, {20, 40}, {3, 1});
  expect_product(floats(linear(x, w, mx::Device::cpu)), x, w);
}

TEST(Linear, EveryInstructionSetOfThisProcessor) {
  std::vector<std::pair<const char*, LinearLoops>> sets{{"portable", linear_portable}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) sets.emplace_back("avx2", linear_avx2);
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    sets.emplace_back("avx512", linear_avx512);
#endif
  const mx::array x = mx::random::normal({5, 77}, mx::float32);
  for (const auto& [dtype, type] :
       {std::pair(mx::float32, WeightType::f32), std::pair(mx::float16, WeightType::f16),
        std::pair(mx::bfloat16, WeightType::bf16)}) {
    mx::array w = mx::astype(mx::random::normal({11, 77}, mx::float32), dtype);
    mx::eval(x, w);
    for (const auto& [name, loops] : sets) {
      SCOPED_TRACE(name);
      std::vector<float> y(55);
      loops({x.data<float>(), w.data<void>(), y.data(), 5, 77, 11, type});
      expect_product(y, x, w);
    }
  }
}

}  // namespace
}  // namespace tandem::kernels
