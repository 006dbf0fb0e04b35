// The kernels for CUDA against MLX's operations. Skipped where there is no CUDA GPU (docs/benchmarks.md says
// how to carry this program to one).
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <optional>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cuda_kernel.h"
#include "kernels/cuda_products.h"
#include "kernels/gather_linear.h"
#include "kernels/pointwise.h"
#include "kernels/routing.h"

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

// Steps of several answers on the GPU and on the CPU, after prompts of different lengths: some at the end of
// what their cache has room for.
TEST_F(CudaTest, AnswersAttendAsOnTheCpu) {
  struct Case {
    int heads, kv_heads, key_dim, value_dim, window;
    bool in_keys;
  };
  for (const Case& c :
       {Case{8, 2, 64, 64, 0, false}, Case{4, 4, 128, 128, 0, false}, Case{6, 2, 80, 48, 0, false},
        Case{5, 1, 16, 16, 20, false}, Case{16, 1, 576, 512, 0, true}}) {
    SCOPED_TRACE(testing::Message() << c.heads << " heads over " << c.kv_heads << " of " << c.key_dim);
    AttentionHeads heads{
        {}, c.kv_heads, 1 / std::sqrt(static_cast<float>(c.key_dim)), c.window, c.in_keys ? c.value_dim : 0};
    for (int head = 0; head < c.heads; ++head) heads.kv_of_query.push_back(head * c.kv_heads / c.heads);
    const std::vector<int> prompts{1, 254, 37, 700, 255};
    std::vector<KeyValues> on_gpu(prompts.size()), on_cpu(prompts.size());
    std::vector<std::pair<mx::array, mx::array>> results;  // steps follow one another without waiting
    const auto step = [&](const std::vector<int>& tokens) {
      std::vector<AttentionRows> gpu_rows, cpu_rows;
      int total = 0;
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        gpu_rows.push_back({tokens[i], &on_gpu[i]});
        cpu_rows.push_back({tokens[i], &on_cpu[i]});
        total += tokens[i];
      }
      const int value_width = c.in_keys ? c.key_dim : c.kv_heads * c.value_dim;
      const mx::array q = normal({total, c.heads * c.key_dim}, mx::bfloat16);
      const mx::array k = normal({total, c.kv_heads * c.key_dim}, mx::bfloat16);
      const mx::array v = c.in_keys ? k : normal({total, value_width}, mx::bfloat16);
      const mx::array y = attention(q, k, v, heads, gpu_rows, stream());
      const mx::array expected =
          attention(as_floats(q), as_floats(k), as_floats(v), heads, cpu_rows, mx::Device::cpu);
      mx::async_eval(y);
      mx::eval(expected);
      results.emplace_back(y, expected);
    };
    step(prompts);
    for (int i = 0; i < 4; ++i) step({1, 1, 1, 1, 1});
    step({1, 1, 3, 1, 1});  // a run of answers, some more of a prompt, and another run
    step({1, 1, 1, 1, 1});
    for (const auto& [y, expected] : results) expect_close(y, expected);
  }
}

TEST_F(CudaTest, HeadsTurnAsOnTheCpu) {
  for (const bool pairs : {false, true}) {
    for (const auto& [dims, head_dim] : {std::pair{64, 64}, {12, 12}, {32, 80}}) {
      const mx::array all = normal({5, 6 * head_dim}, mx::bfloat16);
      const mx::array q = mx::slice(all, {0, 0}, {5, 4 * head_dim}, stream()),
                      k = mx::slice(all, {0, 4 * head_dim}, {5, 6 * head_dim}, stream());
      const std::vector<int> at{0, 1, 77, 3000, 5};
      const mx::array positions(at.data(), {5}, mx::int32);
      std::vector<float> lengths;
      for (int i = 0; i < dims / 2; ++i) lengths.push_back(std::pow(10000.0F, 2.0F * i / dims));
      const mx::array wavelengths(lengths.data(), {dims / 2});
      const auto turned =
          rotate({q, k}, angles_at(positions, wavelengths, 1.25F, pairs, stream()), head_dim, stream());
      const auto expected =
          rotate({as_floats(q), as_floats(k)},
                 angles_at(positions, wavelengths, 1.25F, pairs, mx::Device::cpu), head_dim, mx::Device::cpu);
      for (int i = 0; i < 2; ++i) expect_close(turned[i], expected[i]);
    }
  }
}

TEST_F(CudaTest, TokensChooseTheirExpertsAsOnTheCpu) {
  using Score = Routing::Score;
  using Group = Routing::GroupScore;
  for (const Routing& routing : {Routing{64, 6, 1, 1, Score::softmax, Group::best, false, 1, 0, 64},
                                 Routing{256, 8, 8, 4, Score::sigmoid, Group::best_two, true, 2.5F, 0, 256},
                                 Routing{160, 6, 8, 3, Score::softmax, Group::best, false, 16, 40, 80},
                                 Routing{8, 2, 1, 1, Score::softmax, Group::best, true, 1, 0, 8}}) {
    for (const bool biased : {false, true}) {
      const mx::array logits = normal({33, routing.experts}, mx::float32);
      const auto bias = biased ? std::optional(normal({routing.experts}, mx::float32)) : std::nullopt;
      const Routes routes = route(logits, bias, routing, stream());
      const Routes expected = route(logits, bias, routing, mx::Device::cpu);
      const mx::array held = mx::greater_equal(expected.ids, mx::array(0), mx::Device::cpu);
      const auto of_held = [&](const mx::array& x) {
        return mx::where(held, x, mx::zeros_like(x, mx::Device::cpu), mx::Device::cpu);
      };
      EXPECT_TRUE(mx::array_equal(routes.ids, of_held(expected.ids), mx::Device::cpu).item<bool>());
      EXPECT_LE(largest(mx::subtract(routes.weights, of_held(expected.weights), stream())),
                1e-5F * routing.scale);
      const mx::array x = normal({33, routing.chosen, 200}, mx::bfloat16);
      expect_close(weighted_sum(x, routes.weights, stream()),
                   weighted_sum(as_floats(x), routes.weights, mx::Device::cpu));
    }
  }
}

TEST_F(CudaTest, AMixtureHasItsGradientsAsOnTheCpu) {
  const Routing routing{16, 4, 1, 1, Routing::Score::sigmoid, Routing::GroupScore::best, true, 1, 0, 16};
  for (const int rows : {7, 150}) {
    const auto loss = [&](mx::StreamOrDevice s) {
      return [=](const std::vector<mx::array>& in) {
        const Routes routes = route(mx::matmul(in[0], mx::transpose(in[1], s), s), std::nullopt, routing, s);
        const mx::array inner = gather_linear(in[0], {in[2], std::nullopt, {}}, routes.ids, s);
        const mx::array outer = gather_linear(inner, {in[3], std::nullopt, {}}, routes.ids, s);
        return mx::sum(mx::square(weighted_sum(outer, routes.weights, s), s), s);
      };
    };
    const std::vector<mx::array> in{normal({rows, 24}, mx::float32), normal({16, 24}, mx::float32),
                                    normal({16, 20, 24}, mx::float32), normal({16, 24, 20}, mx::float32)};
    const auto gradients = mx::value_and_grad(loss(stream()), {0, 1, 2, 3})(in).second;
    const auto expected = mx::value_and_grad(loss(mx::Device::cpu), {0, 1, 2, 3})(in).second;
    for (std::size_t i = 0; i < in.size(); ++i) {
      EXPECT_LE(largest(mx::subtract(gradients[i], expected[i], stream())), 2e-3F * largest(expected[i]))
          << rows << " rows, input " << i;
    }
  }
}

// A square root that is rounded another way may move a number to the next step.
TEST_F(CudaTest, AdamwOfEightBitsIsThatOfTheCpu) {
  const mx::Shape shape{300, 700};
  const mx::array value = normal(shape, mx::float32), gradient = normal(shape, mx::float32);
  const AdamwStateIn8Bit before{value, pack_signed(normal(shape, mx::float32), {}),
                                pack_unsigned(mx::abs(normal(shape, mx::float32)), {})};
  const AdamwStep step{0.9F, 0.95F, 1e-8F, 0.999F, 0.02F, 3};
  const AdamwStateIn8Bit ours = adamw(before, gradient, step, 7, stream()),
                         expected = adamw(before, gradient, step, 7, mx::Device::cpu);
  EXPECT_LE(largest(mx::subtract(ours.value, expected.value, stream())), 1e-5F);
  const std::pair<EightBits, EightBits> kept[] = {{ours.mean, expected.mean}, {ours.root, expected.root}};
  for (const auto& [found, wanted] : kept) {
    EXPECT_LE(largest(mx::subtract(found.largest, wanted.largest, stream())), 1e-6F);
    const mx::array apart =
        mx::abs(mx::subtract(as_floats(found.codes), as_floats(wanted.codes), stream()), stream());
    EXPECT_LE(mx::max(apart, stream()).item<float>(), 1);
    EXPECT_LE(mx::mean(apart, stream()).item<float>(), 1e-3F);
  }
}

}  // namespace
}  // namespace tandem::kernels
