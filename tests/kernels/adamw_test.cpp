#include "kernels/adamw.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <cmath>
#include <vector>

#include "kernels/eight_bits.h"
#include "kernels/fixture.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

class AdamwTest : public KernelsTest {};

bool close(const mx::array& a, const mx::array& b) { return mx::allclose(a, b, 2e-6, 2e-6).item<bool>(); }

std::vector<float> numbers(mx::array x) {
  x = mx::contiguous(x);
  x.eval();
  return {x.data<float>(), x.data<float>() + x.size()};
}

// Of more numbers than a thread takes at once.
TEST_F(AdamwTest, IsItsFormulaOnEveryInstructionSetAndThreadCount) {
  const mx::Shape shape{333, 101};
  const mx::array value = mx::random::normal(shape), mean = mx::random::normal(shape),
                  square = mx::square(mx::random::normal(shape)), gradient = mx::random::normal(shape);
  const AdamwStep step{0.9F, 0.95F, 1e-8F, 0.999F, 0.02F, 3};
  const auto plus = [](const mx::array& a, float x, const mx::array& b, float y) {
    return mx::add(mx::multiply(a, mx::array(x)), mx::multiply(b, mx::array(y)));
  };
  const mx::array new_mean = plus(mean, 0.9F, gradient, 0.1F),
                  new_square = plus(square, 0.95F, mx::square(gradient), 0.05F);
  const mx::array size = mx::add(mx::sqrt(mx::multiply(new_square, mx::array(3.0F))), mx::array(1e-8F));
  const mx::array expected[] = {plus(value, 0.999F, mx::divide(new_mean, size), -0.02F), new_mean,
                                new_square};
  std::vector<mx::array> first;
  for (const char* name : {"portable", "avx2", "avx512", "neon", "neon_i8mm"}) {
    if (!find_loops(name)) continue;
    use_loops(name);
    set_threads(first.empty() ? 1 : 3);
    const auto after = adamw({value, mean, square}, gradient, step, mx::Device::cpu);
    const std::vector<mx::array> found{after.value, after.mean, after.square};
    mx::eval(found);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(close(found[i], expected[i])) << i;
      if (!first.empty()) {
        EXPECT_TRUE(mx::array_equal(found[i], first[i]).item<bool>()) << name << " " << i;
      }
    }
    if (first.empty()) first = found;
  }
}

// Sizes from 1e-12 to 1, blocks of zeros, and a block that is not full.
mx::array of_all_sizes() {
  const mx::array sizes = mx::power(mx::array(10.0F), mx::random::uniform(-12, 0, {40, 250}));
  const mx::array x = mx::multiply(sizes, mx::sign(mx::random::normal({40, 250})));
  return mx::concatenate({mx::zeros({3, 250}), x}, 0);
}

TEST_F(AdamwTest, EightBitsAreNearAndGiveTheSameCodesAgain) {
  const mx::array x = of_all_sizes(), random_noise = rounding_noise(x.size(), 3);
  for (const bool random : {false, true}) {
    const auto noise = random ? std::optional(random_noise) : std::nullopt;
    const auto a = pack_signed(x, noise), b = pack_unsigned(mx::abs(x), noise);
    const mx::array unpacked = unpack_signed(a, x.shape()), size = unpack_unsigned(b, x.shape());
    const auto a_again = pack_signed(unpacked, {}), b_again = pack_unsigned(size, {});
    EXPECT_TRUE(mx::array_equal(a.codes, a_again.codes).item<bool>());
    EXPECT_TRUE(mx::array_equal(a.largest, a_again.largest).item<bool>());
    EXPECT_TRUE(mx::array_equal(b.codes, b_again.codes).item<bool>());
    EXPECT_TRUE(mx::array_equal(b.largest, b_again.largest).item<bool>());
    const auto exact = numbers(x), ours = numbers(unpacked), sizes = numbers(size);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      // Steps of the fourth root, from the block's largest, which is 1 or less.
      const double root = std::pow(std::abs(exact[i]), 0.25), step = (random ? 1 : 0.51) / 127;
      EXPECT_LE(std::abs(std::pow(std::abs(ours[i]), 0.25) - root), step);
      EXPECT_LE(std::abs(std::pow(sizes[i], 0.25) - root), step);
      EXPECT_GE(ours[i] * exact[i], 0);
      EXPECT_TRUE(exact[i] == 0 || sizes[i] > 0);
    }
  }
}

// One whose inverse, rounded, would give it less than all of its share, and no noise.
TEST_F(AdamwTest, TheLargestOfABlockHasTheTopCode) {
  const float largest = 0x1.de8a3cp+0F;
  const mx::array x = mx::concatenate({mx::array({largest}), mx::full({255}, largest / 2)}, 0);
  const mx::array none = mx::zeros({1, 256});
  EXPECT_EQ(numbers(unpack_signed(pack_signed(x, none), {256}))[0], largest);
  EXPECT_EQ(numbers(unpack_unsigned(pack_unsigned(x, none), {256}))[0], largest);
}

TEST_F(AdamwTest, EightBitsRoundUpAsOftenAsTheMeanNeeds) {
  const mx::array x = mx::concatenate({mx::array({1.0F}), mx::full({255}, 0.307F)}, 0);
  double sum = 0;
  for (std::uint32_t i = 0; i < 100; ++i)
    for (const float value : numbers(unpack_signed(pack_signed(x, rounding_noise(256, i)), {256})))
      sum += value;
  EXPECT_NEAR((sum / 100 - 1) / 255, 0.307, 2e-4);
}

// Bit for bit what packing and unpacking do around the step, over more numbers than a thread takes at once,
// with a block that is not full.
TEST_F(AdamwTest, OfEightBitsIsTheStepOfWhatTheyStandFor) {
  const mx::array all = of_all_sizes(), mean = mx::concatenate({all, all}, 0);
  const mx::Shape shape = mean.shape();
  const mx::array value = mx::random::normal(shape), root = mx::abs(mx::multiply(mean, mx::array(2.0F))),
                  gradient = mx::multiply(mean, mx::random::normal(shape));
  const AdamwStep step{0.9F, 0.95F, 1e-8F, 0.999F, 0.02F, 3};
  constexpr std::uint32_t key = 4000000007U;
  const AdamwStateIn8Bit before{value, pack_signed(mean, {}), pack_unsigned(root, {})};
  const AdamwState wide{value, unpack_signed(before.mean, shape),
                        mx::square(unpack_unsigned(before.root, shape))};
  const auto moved = adamw(wide, gradient, step, mx::Device::cpu);
  const mx::array noise = rounding_noise(value.size(), key);
  const auto new_mean = pack_signed(moved.mean, noise),
             new_root = pack_unsigned(mx::sqrt(moved.square), noise);
  const mx::array expected[] = {moved.value, new_mean.codes, new_mean.largest, new_root.codes,
                                new_root.largest};
  for (const char* name : {"portable", "avx2", "avx512", "neon", "neon_i8mm"}) {
    if (!find_loops(name)) continue;
    use_loops(name);
    for (const int threads : {1, 3}) {
      set_threads(threads);
      const auto after = adamw(before, gradient, step, key, mx::Device::cpu);
      const std::vector<mx::array> found{after.value, after.mean.codes, after.mean.largest, after.root.codes,
                                         after.root.largest};
      mx::eval(found);
      for (int i = 0; i < 5; ++i)
        EXPECT_TRUE(mx::array_equal(found[i], expected[i]).item<bool>()) << name << " " << i;
    }
  }
}

}  // namespace
}  // namespace tandem::kernels
