// The kernels for CUDA against MLX's operations. Skipped where there is no CUDA GPU (docs/benchmarks.md says
// how to carry this program to one).
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/cuda_kernel.h"
#include "kernels/cuda_products.h"
#include "kernels/pointwise.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!mx::is_available(mx::Device::gpu) || !is_cuda(stream())) GTEST_SKIP() << "no CUDA GPU";
    mx::random::seed(1);
  }
  static mx::Stream stream() { return mx::default_stream(mx::Device::gpu); }

  static mx::array normal(const mx::Shape& shape, mx::Dtype dtype) {
    mx::array x =
        mx::astype(mx::random::normal(shape, mx::float32, 0, 1, std::nullopt, stream()), dtype, stream());
    mx::eval(x);
    return x;
  }
  static mx::array as_floats(const mx::array& x) { return mx::astype(x, mx::float32, stream()); }
  static float largest(const mx::array& x) {
    return mx::max(mx::abs(as_floats(x), stream()), stream()).item<float>();
  }
  // Of a result in half precision from the same in float32: half a last bit, and what the sums' order makes.
  static void expect_close(const mx::array& result, const mx::array& expected) {
    const float tolerance = largest(expected) * (result.dtype() == mx::bfloat16 ? 5e-3F : 1e-3F);
    EXPECT_LE(largest(mx::subtract(as_floats(result), expected, stream())), tolerance);
  }

  // Values and the 4 bit matrices of them.
  static std::pair<mx::array, Affine> quantised(const mx::array& dense, int group) {
    auto parts = mx::quantize(dense, group, 4, "affine", std::nullopt, stream());
    mx::eval(parts);
    return {parts[0], Affine{parts[1], parts[2], group, 4}};
  }
  static mx::array dense(const mx::array& codes, const Affine& a) {
    return as_floats(mx::dequantize(codes, as_floats(a.scales), as_floats(a.biases), a.group, a.bits,
                                    "affine", std::nullopt, std::nullopt, stream()));
  }
};

TEST_F(CudaTest, PackedProductsAreThoseOfTheDequantisedMatrix) {
  for (const mx::Dtype dtype : {mx::bfloat16, mx::float16}) {
    for (const int group : {32, 64, 128}) {
      for (const auto& [out, in] : {std::pair{1000, 1408}, {10, 640}, {4096, 4096}}) {
        const auto [codes, affine] = quantised(normal({out, in}, dtype), group);
        for (const int rows : {1, 8, 13, 32}) {
          const mx::array x = normal({rows, in}, dtype);
          const auto y = linear_on_cuda(x, {codes, affine, nullptr}, stream());
          ASSERT_TRUE(y.has_value());
          SCOPED_TRACE(testing::Message() << out << " x " << in << ", group " << group << ", rows " << rows);
          expect_close(*y, mx::matmul(as_floats(x), mx::transpose(dense(codes, affine), stream()), stream()));
        }
      }
    }
  }
}

TEST_F(CudaTest, MoreRowsAreNotForTheseKernels) {
  const auto [codes, affine] = quantised(normal({64, 128}, mx::bfloat16), 64);
  EXPECT_FALSE(
      linear_on_cuda(normal({33, 128}, mx::bfloat16), {codes, affine, nullptr}, stream()).has_value());
}

TEST_F(CudaTest, GatheredProductsAreThoseOfEachExpertAndStraysGiveZero) {
  constexpr int experts = 5, out = 200, in = 256, rows = 3, choices = 2;
  const mx::array weight = normal({experts, out, in}, mx::bfloat16);
  const auto [codes, affine] = quantised(weight, 64);
  const Experts packed{codes, affine, {}}, plain{weight, std::nullopt, {}};
  const std::vector<int> chosen{0, 4, 2, -1, 5, 1};
  const mx::array ids(chosen.data(), {rows, choices}, mx::int32);
  for (const bool shares_rows : {true, false}) {
    const mx::array x =
        normal(shares_rows ? mx::Shape{rows, in} : mx::Shape{rows, choices, in}, mx::bfloat16);
    for (const Experts* one : {&packed, &plain}) {
      const auto y = gather_on_cuda(x, *one, ids, stream());
      ASSERT_TRUE(y.has_value());
      const mx::array all = one->affine ? dense(codes, affine) : as_floats(weight);
      for (int pair = 0; pair < rows * choices; ++pair) {
        const int row = pair / choices, choice = pair % choices, id = chosen[pair];
        const mx::array result = mx::slice(*y, {row, choice, 0}, {row + 1, choice + 1, out}, stream());
        if (id < 0 || id >= experts) {
          EXPECT_EQ(largest(result), 0);
          continue;
        }
        const mx::array from = shares_rows
                                   ? mx::slice(x, {row, 0}, {row + 1, in}, stream())
                                   : mx::slice(x, {row, choice, 0}, {row + 1, choice + 1, in}, stream());
        const mx::array expert = mx::slice(all, {id, 0, 0}, {id + 1, out, in}, stream());
        const mx::array product =
            mx::matmul(expert, mx::reshape(as_floats(from), {1, in, 1}, stream()), stream());
        expect_close(result, mx::reshape(product, {1, 1, out}, stream()));
      }
    }
  }
}

TEST_F(CudaTest, TheSumAndItsNormAreThoseOfTwoOperations) {
  for (const int rows : {1, 5}) {
    const mx::array x = normal({rows, 1000}, mx::bfloat16), added = normal({rows, 1000}, mx::bfloat16);
    const mx::array weight = normal({1000}, mx::bfloat16);
    const auto both = add_rms_norm(x, added, weight, 1e-6F, stream());
    const mx::array sum = mx::add(x, added, stream());
    EXPECT_EQ(largest(mx::subtract(both.sum, sum, stream())), 0);
    expect_close(both.norm, mx::fast::rms_norm(as_floats(sum), as_floats(weight), 1e-6F, stream()));
  }
}

}  // namespace
}  // namespace tandem::kernels
