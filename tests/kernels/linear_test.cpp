#include "kernels/linear.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>
#include <mlx/utils.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/fixture.h"
#include "kernels/threads.h"

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

Matrix dense(const mx::array& weight) { return {weight, std::nullopt, nullptr}; }

Matrix quantised(const mx::array& weight, int bits, int group) {
  const auto parts = mx::quantize(weight, group, bits);
  return {parts[0], Affine{parts[1], parts[2], group, bits}, nullptr};
}

mx::array dequantised(const Matrix& m) {
  return mx::dequantize(*m.weight, m.affine->scales, m.affine->biases, m.affine->group, m.affine->bits);
}

mx::array run(const mx::array& x, const Matrix& matrix) { return linear(x, matrix, mx::Device::cpu); }

// Every kind of matrix that can be packed, of 256 inputs.
std::vector<Matrix> every_kind(int out) {
  std::vector<Matrix> kinds;
  for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    kinds.push_back(pack(dense(mx::astype(mx::random::normal({out, 256}), dtype))));
    for (const int bits : {4, 8}) {
      for (const int group : {32, 64, 128}) {
        kinds.push_back(pack(quantised(mx::astype(mx::random::normal({out, 256}), dtype), bits, group)));
      }
    }
  }
  return kinds;
}

class LinearTest : public KernelsTest {};

TEST_F(LinearTest, EqualsTheSumForAnyShapeAndType) {
  use_activations(Activations::float32);  // what pairs and int8 come to is tested below
  for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (const int in : {1, 2, 31, 64, 70, 300}) {
      for (const int out : {1, 5, 31, 32, 33, 64, 70}) {
        for (const int rows : {1, 2, 7, 13, 40}) {
          const mx::array x = mx::random::normal({rows, in}, mx::float32);
          const mx::array w = mx::astype(mx::random::normal({out, in}, mx::float32), dtype);
          const auto y = floats(run(x, pack(dense(w))));
          expect_product(y, x, w);
          EXPECT_EQ(y, floats(run(x, dense(w)))) << "packed or not";
        }
      }
    }
  }
}

TEST_F(LinearTest, BfloatPairsMultiplyRoundedRows) {
  const mx::array x = mx::random::normal({14, 301}, mx::float32);
  const mx::array w = mx::astype(mx::random::normal({70, 301}, mx::float32), mx::bfloat16);
  for (const char* name : {"portable", "avx512_bf16", "amx", "amx_float32"}) {
    if (!find_loops(name)) continue;
    use_loops(name);
    const bool rounds = find_loops(name)->bf16_terms == 1;
    expect_product(floats(run(x, pack(dense(w)))),
                   rounds ? mx::astype(mx::astype(x, mx::bfloat16), mx::float32) : x, w);
  }
}

// What bfloat16 cannot hold in one term, in whole tiles and in what is left; and what has no terms.
TEST_F(LinearTest, FloatsMeetBfloatPairsUnrounded) {
  constexpr float huge = 3.4e38F, inf = std::numeric_limits<float>::infinity();
  const std::vector<float> numbers{1 + 0x1p-23F, huge, -huge, 1e-30F, 0.1F, -0.0F, 1 / 3.0F, 16777215.0F};
  for (const char* name : {"portable", "avx512", "amx_float32"}) {
    if (!find_loops(name)) continue;
    use_loops(name);
    for (const int size : {8, 64, 72}) {
      std::vector<float> row;
      for (int i = 0; i < size; ++i) row.push_back(numbers[static_cast<std::size_t>(i) % numbers.size()]);
      const Matrix same = pack(dense(mx::eye(size, mx::bfloat16)));
      for (const int rows : {1, 3, 33}) {
        const mx::array x = mx::broadcast_to(mx::array(row.data(), {1, size}), {rows, size});
        const auto y = floats(run(x, same));
        for (int i = 0; i < rows * size; ++i)
          ASSERT_EQ(y[i], row[i % size]) << name << " " << size << " " << i;
      }
    }
    const auto wild =
        floats(run(mx::array({inf, 1.0F, -inf, 2.0F}, {2, 2}), pack(dense(mx::ones({1, 2}, mx::bfloat16)))));
    EXPECT_EQ(wild, (std::vector{inf, -inf})) << name;
    const mx::array none({std::nanf("")}, {1, 1});
    EXPECT_TRUE(std::isnan(floats(run(none, pack(dense(mx::ones({1, 1}, mx::bfloat16)))))[0])) << name;
  }
}

// Each x is off by at most half a step of its group, |x|max / 254.
TEST_F(LinearTest, QuantisedProductsAreWithinTheStepOfTheirRows) {
  for (const int bits : {4, 8}) {
    for (const int group : {32, 64, 128}) {
      for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
        const mx::array x = mx::random::normal({9, 384}, mx::float32);
        const Matrix matrix =
            quantised(mx::astype(mx::random::normal({45, 384}, mx::float32), dtype), bits, group);
        const auto y = floats(run(x, pack(matrix))), a = floats(x), w = floats(dequantised(matrix));
        for (int r = 0; r < 9; ++r) {
          for (int o = 0; o < 45; ++o) {
            double sum = 0, bound = 0;
            for (int g = 0; g < 384; g += group) {
              double top = 0, weights = 0;
              for (int i = g; i < g + group; ++i) {
                sum += static_cast<double>(a[r * 384 + i]) * w[o * 384 + i];
                top = std::max<double>(top, std::abs(a[r * 384 + i]));
                weights += std::abs(w[o * 384 + i]);
              }
              // 0.004: what rounding the dequantised weight to bfloat16 adds.
              bound += top / 254 * weights + 0.004 * top * weights;
            }
            ASSERT_NEAR(y[r * 45 + o], sum, bound) << bits << " " << group << " " << r << " " << o;
          }
        }
      }
    }
  }
}

TEST_F(LinearTest, QuantisedProductsInFloat32AreThoseOfTheDequantised) {
  use_activations(Activations::float32);
  const mx::array x = mx::random::normal({9, 384}, mx::float32);
  for (const int bits : {4, 8}) {
    const Matrix matrix = quantised(mx::random::normal({45, 384}, mx::float32), bits, 64);
    expect_product(floats(run(x, pack(matrix))), x, dequantised(matrix));
  }
}

TEST_F(LinearTest, EveryInstructionSetGivesTheSameBits) {
  const mx::array x = mx::random::normal({29, 256}, mx::float32);
  for (const auto& matrix : every_kind(77)) {
    use_loops("portable");
    const auto expected = floats(run(x, matrix));
    for (const char* name : {"avx2", "avx512", "avx512_bf16", "amx", "amx_float32", "neon", "neon_i8mm"}) {
      const auto* loops = find_loops(name);
      const bool pairs = matrix.packed->shape().format == Format::bf16 && loops && loops->bf16_terms > 0;
      if (!loops || pairs) continue;
      use_loops(name);
      EXPECT_EQ(floats(run(x, matrix)), expected) << name;
    }
  }
}

TEST_F(LinearTest, ARowDependsNeitherOnItsNeighboursNorOnThreads) {
  const mx::array x = mx::random::normal({45, 256}, mx::float32);
  for (const char* name :
       {"portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_float32", "neon", "neon_i8mm"}) {
    if (!find_loops(name)) continue;
    use_loops(name);
    for (const auto& matrix : every_kind(300)) {
      set_threads(1);
      const auto all = floats(run(x, matrix));
      for (const int height : {1, 2, 3, 5, 7, 12, 13, 31}) {
        set_threads(height % 3 + 1);
        for (int row = 0; row + height <= 45; row += height) {
          const auto some = floats(run(mx::slice(x, {row, 0}, {row + height, 256}), matrix));
          ASSERT_EQ(std::memcmp(some.data(), all.data() + row * 300, some.size() * sizeof(float)), 0)
              << name << " " << row << " of " << height;
        }
      }
    }
  }
}

// More rows, inputs and panels than are taken at once, forward and back.
TEST_F(LinearTest, ManyRowsOfManyInputsAreAsFewAtATime) {
  constexpr int rows = 300, few = 20;
  for (const auto dtype : {mx::float32, mx::bfloat16}) {
    for (const auto& [out, in] : {std::pair{75, 2530}, {2530, 75}}) {
      const mx::array x = mx::random::normal({rows, in}), c = mx::random::normal({rows, out});
      const Matrix matrix = pack(dense(mx::astype(mx::random::normal({out, in}), dtype)));
      const auto product = [&](const std::vector<mx::array>& at) { return std::vector{run(at[0], matrix)}; };
      const auto both = [&](int first, int count) {
        const auto part = [&](const mx::array& all, int width) {
          return mx::contiguous(mx::slice(all, {first, 0}, {first + count, width}));
        };
        const auto [y, gradient] = mx::vjp(product, {part(x, in)}, {part(c, out)});
        return std::pair{floats(y[0]), floats(gradient[0])};
      };
      for (const char* name : {"avx2", "avx512", "avx512_bf16", "amx", "amx_float32", "neon", "neon_i8mm"}) {
        if (!find_loops(name)) continue;
        use_loops(name);
        const auto [y, gradient] = both(0, rows);
        for (int row = 0; row < rows; row += few) {
          const auto [some_y, some_gradient] = both(row, few);
          ASSERT_TRUE(std::equal(some_y.begin(), some_y.end(), y.begin() + row * out)) << name << " " << row;
          ASSERT_TRUE(std::equal(some_gradient.begin(), some_gradient.end(), gradient.begin() + row * in))
              << name << " " << row;
        }
      }
    }
  }
}

TEST_F(LinearTest, ThereIsNoGradientOfNoRows) {
  const auto product = [](const std::vector<mx::array>& at) { return std::vector{run(at[0], dense(at[1]))}; };
  const mx::array x = mx::zeros({0, 96}), w = mx::random::normal({64, 96});
  const auto gradients = mx::vjp(product, {x, w}, {mx::zeros({0, 64})}).second;
  EXPECT_EQ(gradients[0].shape(), x.shape());
  EXPECT_TRUE(mx::array_equal(gradients[1], mx::zeros({64, 96})).item<bool>());
}

TEST_F(LinearTest, SeveralMatricesAtOnceAreEachAsAlone) {
  const mx::array x = mx::random::normal({3, 2, 256}, mx::float32);
  const auto kinds = every_kind(40);
  const auto together = linear(x, kinds, mx::Device::cpu);
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    EXPECT_EQ(together[i].shape(), (mx::Shape{3, 2, 40}));
    EXPECT_EQ(floats(together[i]), floats(run(x, kinds[i])));
  }
}

TEST_F(LinearTest, WhatIsNotFiniteShows) {
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    std::vector<float> values(256, 1);
    values[77] = bad;
    const mx::array x(values.data(), {1, 256});
    for (const auto& matrix : every_kind(33)) {
      for (const float y : floats(run(x, matrix))) EXPECT_FALSE(std::isfinite(y));
    }
  }
}

TEST_F(LinearTest, TakesArraysThatAreNotContiguous) {
  const mx::array x = mx::transpose(mx::random::normal({40, 6}, mx::float32));
  const mx::array w = mx::slice(mx::random::normal({20, 40}, mx::float32), {0, 0}, {20, 40}, {3, 1});
  expect_product(floats(run(x, dense(w))), x, w);
  expect_product(floats(run(x, pack(dense(w)))), x, w);
}

TEST_F(LinearTest, RowsAreTheMatrixAsItWas) {
  const mx::array ids({5, 0, 44, 5}, mx::int32);
  for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    const mx::array w = mx::astype(mx::random::normal({45, 96}, mx::float32), dtype);
    EXPECT_EQ(floats(rows(pack(dense(w)), ids, mx::Device::cpu)), floats(mx::take(w, ids, 0)));
    for (const int bits : {4, 8}) {
      const Matrix q = quantised(mx::astype(w, mx::float32), bits, 32);
      const auto found = floats(rows(pack(q), ids, mx::Device::cpu)),
                 expected = floats(mx::take(dequantised(q), ids, 0));
      for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-6);
    }
  }
}

// The gradient of sum(linear(x, w) * c) is c · w and cᵀ · x.
TEST_F(LinearTest, GradientsOfDenseAndPackedMatrices) {
  const mx::array c = mx::random::normal({7, 45});
  const auto close = [](const mx::array& a, const mx::array& b) {
    EXPECT_TRUE(mx::allclose(a, b, 1e-4, 1e-4).item<bool>());
  };
  for (const int in : {64, 63, 8}) {
    const mx::array x = mx::random::normal({7, in}), w = mx::random::normal({45, in});
    const auto product = [](const std::vector<mx::array>& at) {
      return std::vector{run(at[0], dense(at[1]))};
    };
    const auto by_both = mx::vjp(product, {x, w}, {c}).second;
    close(by_both[0], mx::matmul(c, w));
    close(by_both[1], mx::matmul(mx::transpose(c), x));
  }
  const mx::array x = mx::random::normal({7, 64}), w = mx::random::normal({45, 64});
  for (const bool is_quantised : {false, true}) {
    const Matrix matrix = is_quantised ? quantised(w, 4, 32) : dense(w);
    const Matrix packed = pack(matrix);
    const auto loss = [&](const mx::array& at) { return mx::sum(mx::multiply(run(at, packed), c)); };
    const mx::array gradient = mx::grad(loss)(x);
    close(gradient, mx::matmul(c, is_quantised ? dequantised(matrix) : w));
    if (is_quantised) continue;  // rounding x to int8 is a step function: finite differences see the steps
    const mx::array direction = mx::random::normal({7, 64});
    const float h = 1e-2F;
    const float rise = mx::subtract(loss(mx::add(x, mx::multiply(direction, mx::array(h)))),
                                    loss(mx::subtract(x, mx::multiply(direction, mx::array(h)))))
                           .item<float>();
    EXPECT_NEAR(rise / (2 * h), mx::sum(mx::multiply(gradient, direction)).item<float>(), 2e-2);
  }
}

TEST_F(LinearTest, GradientsOfEveryFormatAreTheSameOnEveryInstructionSet) {
  for (const int in : {96, 63}) {
    const mx::array x = mx::random::normal({9, in}), c = mx::random::normal({9, 45}),
                    w = mx::random::normal({45, in});
    std::vector<std::pair<Matrix, mx::array>> matrices;  // and what each stands for
    for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
      const mx::array rounded = mx::astype(w, dtype);
      matrices.emplace_back(dense(rounded), rounded);
      matrices.emplace_back(pack(dense(rounded)), rounded);
    }
    for (const int bits : {4, 8}) {
      if (in % 32 != 0) continue;
      const Matrix q = quantised(w, bits, 32);
      matrices.emplace_back(pack(q), dequantised(q));
    }
    for (const auto& [matrix, whole] : matrices) {
      std::vector<float> first;
      for (const char* name :
           {"portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_float32", "neon", "neon_i8mm"}) {
        if (!find_loops(name)) continue;
        use_loops(name);
        const auto product = [&, m = matrix](const std::vector<mx::array>& at) {
          return std::vector{run(at[0], m)};
        };
        const auto gradient = floats(mx::vjp(product, {x}, {c}).second[0]);
        const int terms = whole.dtype() == mx::bfloat16 ? find_loops(name)->bf16_terms : 0;
        const bool rounds = terms == 1;
        const mx::array seen = rounds ? mx::astype(mx::astype(c, mx::bfloat16), mx::float32) : c;
        const mx::array expected = mx::matmul(seen, mx::astype(whole, mx::float32));
        EXPECT_TRUE(mx::allclose(mx::array(gradient.data(), {9, in}), expected, 1e-4, 1e-4).item<bool>())
            << name;
        if (terms > 0) continue;
        if (first.empty()) first = gradient;
        EXPECT_EQ(gradient, first) << name;
      }
      use_loops(find_loops()->name);
    }
  }
}

TEST_F(LinearTest, AddsAScaledProductWithItsGradients) {
  const mx::array y = mx::random::normal({3, 5}), x = mx::random::normal({3, 8}),
                  w = mx::random::normal({5, 8});
  const auto ours = [](const std::vector<mx::array>& in) {
    return mx::sum(mx::square(add_linear(in[0], in[1], dense(in[2]), 2.5F, mx::Device::cpu)));
  };
  const auto plain = [](const std::vector<mx::array>& in) {
    const mx::array product = mx::matmul(in[1], mx::transpose(in[2]));
    return mx::sum(mx::square(mx::add(in[0], mx::multiply(product, mx::array(2.5F)))));
  };
  auto [value, gradients] = mx::value_and_grad(ours, {0, 1, 2})({y, x, w});
  auto [expected, wanted] = mx::value_and_grad(plain, {0, 1, 2})({y, x, w});
  EXPECT_NEAR(value.item<float>() / expected.item<float>(), 1, 1e-5);
  for (std::size_t i = 0; i < wanted.size(); ++i)
    EXPECT_TRUE(mx::allclose(gradients[i], wanted[i], 1e-4, 1e-4).item<bool>()) << i;
}

#ifdef TANDEM_FASTEST_LOOPS
TEST_F(LinearTest, TheProcessorIsTheOneThatThisBuildIsTestedOn) {
  EXPECT_STREQ(find_loops()->name, TANDEM_FASTEST_LOOPS);
}
#endif

TEST_F(LinearTest, RefusesWhatDoesNotFit) {
  EXPECT_THROW(run(mx::zeros({1, 3}), dense(mx::zeros({2, 4}))), std::invalid_argument);
  // On a GPU too, and where they are one product; nothing is computed, so that none need be there.
  Matrix first = dense(mx::zeros({2, 4})), second = first;
  join({&first, &second});
  try {
    linear(mx::zeros({1, 3}), {first, second}, mx::Stream(0, mx::Device::gpu));
    ADD_FAILURE() << "no error";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "linear: x and weight disagree on the inputs");
  }
  EXPECT_THROW(use_loops("abacus"), std::invalid_argument);
}

}  // namespace
}  // namespace tandem::kernels
