#include "kernels/pointwise.h"

#include <gtest/gtest.h>
#include <mlx/fast.h>
#include <mlx/ops.h>
#include <mlx/primitives.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <cmath>
#include <functional>
#include <stdexcept>

#include "kernels/fixture.h"
#include "kernels/gradients.h"
#include "kernels/log_sum_exp.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

class PointwiseTest : public KernelsTest {};

bool close(const mx::array& a, const mx::array& b, double tolerance = 2e-6) {
  return mx::allclose(a, b, tolerance, tolerance).item<bool>();
}

// Every operation over the same inputs; x and y [rows, 3 heads * 20].
std::vector<mx::array> run_all(const mx::array& x, const mx::array& y, const mx::array& weight) {
  const auto angles = angles_at(mx::arange(5, 5 + x.shape(0), mx::int32), mx::array({1.0F, 10.0F, 100.0F}),
                                1.5F, false, mx::Device::cpu);
  std::vector<mx::array> results{rms_norm(x, weight, 1e-5F, mx::Device::cpu),
                                 silu_multiply(x, y, mx::Device::cpu)};
  const auto both = add_rms_norm(x, y, weight, 1e-5F, mx::Device::cpu);
  results.insert(results.end(), {both.sum, both.norm});
  for (auto& turned : rotate({x, y}, angles, 20, mx::Device::cpu)) results.push_back(turned);
  auto pairs = angles;
  pairs.pairs = true;
  results.push_back(rotate({x}, pairs, 20, mx::Device::cpu).front());
  results.push_back(head_part(x, 20, 3, 9, mx::Device::cpu));
  results.push_back(join_heads(x, 20, y, 20, mx::Device::cpu));
  for (const auto& added : {weight, y}) results.push_back(kernels::add(x, added, mx::Device::cpu));
  return results;
}

// rows [T, 3 * 20], numbers i and i + 3 of each head, or 2i and 2i + 1.
mx::array expected_turn(const mx::array& x, bool pairs = false) {
  std::vector<float> from(x.data<float>(), x.data<float>() + x.size()), to = from;
  const double wavelengths[] = {1, 10, 100};
  for (int t = 0; t < x.shape(0); ++t) {
    for (int head = 0; head < 3; ++head) {
      for (int i = 0; i < 3; ++i) {
        const int a = t * 60 + head * 20 + (pairs ? 2 * i : i), b = a + (pairs ? 1 : 3);
        const double c = 1.5 * std::cos((5 + t) / wavelengths[i]),
                     s = 1.5 * std::sin((5 + t) / wavelengths[i]);
        to[a] = static_cast<float>(from[a] * c - from[b] * s);
        to[b] = static_cast<float>(from[b] * c + from[a] * s);
      }
    }
  }
  return mx::array(to.data(), x.shape());
}

// Some of them no column of 60.
mx::array columns_of(int rows) {
  return mx::subtract(
      mx::remainder(mx::multiply(mx::arange(0, rows, mx::int32), mx::array(7)), mx::array(65)), mx::array(2));
}

TEST_F(PointwiseTest, EqualMlxsOperations) {
  for (const int rows : {1, 7, 300}) {
    const mx::array x = mx::multiply(mx::random::normal({rows, 60}), mx::array(3.0F)),
                    y = mx::random::normal({rows, 60}), weight = mx::random::normal({60});
    mx::eval(x, y);
    const auto results = run_all(x, y, weight);
    EXPECT_TRUE(close(results[0], mx::fast::rms_norm(x, weight, 1e-5F, mx::Device::cpu)));
    EXPECT_TRUE(close(results[1], mx::multiply(mx::multiply(x, mx::sigmoid(x)), y)));
    EXPECT_TRUE(close(results[2], mx::add(x, y)));
    EXPECT_TRUE(close(results[3], mx::fast::rms_norm(mx::add(x, y), weight, 1e-5F, mx::Device::cpu)));
    // An angle of 305 in float32 is off by up to 2e-5, and multiplies values of up to 12.
    EXPECT_TRUE(close(results[4], expected_turn(x), 2e-4));
    EXPECT_TRUE(close(results[5], expected_turn(y), 2e-4));
    EXPECT_TRUE(close(results[6], expected_turn(x, true), 2e-4));
    const mx::array xs = mx::reshape(x, {rows, 3, 20}), ys = mx::reshape(y, {rows, 3, 20});
    EXPECT_TRUE(close(results[7], mx::reshape(mx::slice(xs, {0, 0, 3}, {rows, 3, 9}), {rows, 18}), 0));
    EXPECT_TRUE(close(results[8], mx::reshape(mx::concatenate({xs, ys}, 2), {rows, 120}), 0));
    EXPECT_TRUE(close(results[9], mx::add(x, weight), 0));
    EXPECT_TRUE(close(results[10], mx::add(x, y), 0));
  }
}

TEST_F(PointwiseTest, EveryInstructionSetAndThreadCountGivesTheSameBits) {
  const mx::array x = mx::random::normal({500, 60}), y = mx::random::normal({500, 60}),
                  weight = mx::random::normal({60});
  use_loops("portable");
  const auto expected = run_all(x, y, weight);
  mx::eval(expected);
  for (const char* name : {"avx2", "avx512", "neon", "neon_i8mm"}) {
    if (!find_loops(name)) continue;
    use_loops(name);
    set_threads(3);
    const auto results = run_all(x, y, weight);
    for (std::size_t i = 0; i < results.size(); ++i) {
      EXPECT_TRUE(mx::array_equal(results[i], expected[i]).item<bool>()) << name << " " << i;
    }
  }
}

// Of more rows than a part of the weight's gradient has, beside MLX's own gradients.
TEST_F(PointwiseTest, GradientsAreThoseOfMlxOnEveryInstructionSetAndThreadCount) {
  const mx::array x = mx::random::normal({75, 60}), y = mx::random::normal({75, 60}),
                  weight = mx::random::normal({60}), c = mx::random::normal({75, 60});
  const mx::Device s = mx::Device::cpu;
  using Arrays = std::vector<mx::array>;
  const auto angles = angles_at(mx::arange(0, 75, mx::int32), mx::array({1.0F, 10.0F, 100.0F}), 1, false, s);
  const struct Row {
    std::function<Arrays(const Arrays&)> ours, mlx;
    Arrays at;
  } table[] = {
      {[&](const Arrays& in) { return Arrays{rms_norm(in[0], in[1], 1e-5F, s)}; },
       [&](const Arrays& in) { return Arrays{mx::fast::rms_norm(in[0], in[1], 1e-5F, s)}; },
       {x, weight}},
      {[&](const Arrays& in) {
         const auto both = add_rms_norm(in[0], in[1], in[2], 1e-5F, s);
         return Arrays{mx::add(both.norm, mx::multiply(both.sum, x))};
       },
       [&](const Arrays& in) {
         const auto sum = mx::add(in[0], in[1]);
         return Arrays{mx::add(mx::fast::rms_norm(sum, in[2], 1e-5F, s), mx::multiply(sum, x))};
       },
       {x, y, weight}},
      {[&](const Arrays& in) { return Arrays{silu_multiply(in[0], in[1], s)}; },
       [&](const Arrays& in) { return Arrays{mx::multiply(mx::multiply(in[0], mx::sigmoid(in[0])), in[1])}; },
       {x, y}},
      {[&](const Arrays& in) { return rotate({in[0]}, angles, 20, s); },
       [&](const Arrays& in) {
         const mx::array heads = mx::reshape(in[0], {75, 3, 20}),
                         cosines = mx::expand_dims(angles.cosines, 1),
                         sines = mx::expand_dims(angles.sines, 1);
         const auto part = [&](int first, int end) { return mx::slice(heads, {0, 0, first}, {75, 3, end}); };
         const mx::array a = part(0, 3), b = part(3, 6);
         const mx::array turned =
             mx::concatenate({mx::subtract(mx::multiply(a, cosines), mx::multiply(b, sines)),
                              mx::add(mx::multiply(b, cosines), mx::multiply(a, sines)), part(6, 20)},
                             2);
         return Arrays{mx::reshape(turned, {75, 60})};
       },
       {x}},
      {[&](const Arrays& in) {
         const auto found = log_sum_exp(in[0], columns_of(75), s);
         return Arrays{mx::multiply(c, mx::expand_dims(mx::subtract(found.log_sum, found.chosen), 1))};
       },
       [&](const Arrays& in) {
         const mx::array own = mx::where(mx::equal(mx::expand_dims(columns_of(75), 1), mx::arange(0, 60)),
                                         in[0], mx::array(0.0F));
         return Arrays{mx::multiply(c, mx::subtract(mx::logsumexp(in[0], 1, true), mx::sum(own, 1, true)))};
       },
       {x}},
  };
  for (const auto& row : table) {
    const auto index = &row - table;
    const Arrays expected = mx::vjp(row.mlx, row.at, {c}).second;
    Arrays first;
    for (const char* name : {"portable", "avx2", "avx512", "neon", "neon_i8mm"}) {
      if (!find_loops(name)) continue;
      use_loops(name);
      set_threads(first.empty() ? 1 : 3);
      const Arrays found = mx::vjp(row.ours, row.at, {c}).second;
      mx::eval(found);
      for (std::size_t i = 0; i < found.size(); ++i) {
        EXPECT_TRUE(close(found[i], expected[i], 1e-4)) << index << " " << i << " " << name;
        if (!first.empty()) {
          EXPECT_TRUE(mx::array_equal(found[i], first[i]).item<bool>()) << index << " " << i << " " << name;
        }
      }
      if (first.empty()) first = found;
    }
  }
}

TEST_F(PointwiseTest, SiluAtTheEndsOfItsRange) {
  const mx::array gate({-200.0F, -90.0F, 0.0F, 90.0F, 3e38F, std::nanf("")});
  const mx::array y = silu_multiply(gate, mx::ones({6}), mx::Device::cpu);
  mx::eval(y);
  const float* at = y.data<float>();
  EXPECT_NEAR(at[0], 0, 1e-30);
  EXPECT_NEAR(at[1], 0, 1e-30);
  EXPECT_EQ(at[2], 0);
  EXPECT_EQ(at[3], 90);
  EXPECT_EQ(at[4], 3e38F);
  EXPECT_TRUE(std::isnan(at[5]));
}

TEST_F(PointwiseTest, RefusesWhatDoesNotFit) {
  const auto zeros = [](mx::Shape shape) { return mx::zeros(std::move(shape)); };
  const mx::array x = zeros({5, 60}), weight = zeros({60}), matrix = zeros({1, 60});
  const mx::array wider = zeros({5, 61}), longer = zeros({6, 60}), shorter = zeros({4, 60});
  const auto angles = [](int positions, int waves) {
    return angles_at(mx::arange(0, positions, mx::int32), mx::ones({waves}), 1, false, mx::Device::cpu);
  };
  const auto fit = angles(5, 3);
  auto mixed = fit;
  mixed.sines = angles(5, 2).sines;
  const mx::Device s = mx::Device::cpu;
  const struct {
    const char* name;
    std::function<void()> call;
  } table[] = {
      {"norm of other rows", [&] { rms_norm(wider, weight, 1e-5F, s); }},
      {"norm without a weight", [&] { rms_norm(x, zeros({0}), 1e-5F, s); }},
      {"norm by a matrix", [&] { rms_norm(x, matrix, 1e-5F, s); }},
      {"norm of a sum of other rows", [&] { add_rms_norm(x, x, zeros({59}), 1e-5F, s); }},
      {"norm of too short a sum", [&] { add_rms_norm(x, shorter, weight, 1e-5F, s); }},
      {"sum with fewer rows", [&] { kernels::add(x, shorter, s); }},
      {"sum with a longer row", [&] { kernels::add(x, zeros({61}), s); }},
      {"sum with more axes", [&] { kernels::add(weight, x, s); }},
      {"product of fewer rows", [&] { silu_multiply(x, shorter, s); }},
      {"product of a row", [&] { silu_multiply(x, weight, s); }},
      {"turn of more rows", [&] { rotate({longer}, fit, 20, s); }},
      {"turn of no whole heads", [&] { rotate({x}, fit, 7, s); }},
      {"turn of heads of nothing", [&] { rotate({x}, fit, 0, s); }},
      {"turn of too small heads", [&] { rotate({x}, fit, 5, s); }},
      {"turn by mixed angles", [&] { rotate({x}, mixed, 20, s); }},
      {"turn of an axis", [&] { rotate({weight}, fit, 20, s); }},
      {"part past a head", [&] { head_part(x, 20, 3, 21, s); }},
      {"part before a head", [&] { head_part(x, 20, -1, 3, s); }},
      {"part that ends first", [&] { head_part(x, 20, 3, 2, s); }},
      {"part of no whole heads", [&] { head_part(x, 7, 0, 7, s); }},
      {"heads of other rows", [&] { join_heads(x, 20, shorter, 20, s); }},
      {"fewer heads", [&] { join_heads(x, 20, x, 30, s); }},
      {"no whole heads", [&] { join_heads(x, 20, x, 0, s); }},
  };
  for (const auto& row : table) EXPECT_THROW(row.call(), std::invalid_argument) << row.name;
}

// No such stream is there, and nothing is computed.
TEST_F(PointwiseTest, OnAGpuTheStreamIsTheOneGiven) {
  const mx::Stream other(77, mx::Device::gpu);
  const mx::array x = mx::ones({2, 3});
  EXPECT_EQ(silu_multiply(x, x, other).primitive().stream(), other);
}

TEST_F(PointwiseTest, GradientsAgreeWithFiniteDifferences) {
  const std::vector<mx::array> at{mx::random::normal({4, 60}), mx::random::normal({4, 60}),
                                  mx::random::normal({60})};
  std::vector<mx::array> weights;
  for (const auto& result : run_all(at[0], at[1], at[2]))
    weights.push_back(mx::random::normal(result.shape()));
  const auto loss = [&](const std::vector<mx::array>& in) {
    mx::array sum(0.0F);
    const auto results = run_all(in[0], in[1], in[2]);
    for (std::size_t i = 0; i < results.size(); ++i)
      sum = mx::add(sum, mx::sum(mx::multiply(results[i], weights[i])));
    return sum;
  };
  expect_gradients(loss, at, 5e-2);
}

}  // namespace
}  // namespace tandem::kernels
