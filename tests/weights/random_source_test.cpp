#include "weights/random_source.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <cmath>

#include "base/error.h"

namespace tandem::weights {
namespace {

namespace mx = mlx::core;

std::vector<float> values_of(const mx::array& array) {
  mx::array floats = mx::contiguous(mx::astype(array, mx::float32, mx::Device::cpu), false, mx::Device::cpu);
  floats.eval();
  return {floats.data<float>(), floats.data<float>() + floats.size()};
}

const auto no_report = [](std::uint64_t) {};

TEST(Pieces, AreThePartInItsTensor) {
  const auto expect = [](const Slice& slice, Pieces pieces) {
    const Pieces made = pieces_of(slice);
    EXPECT_EQ(made.first, pieces.first);
    EXPECT_EQ(made.run, pieces.run);
    EXPECT_EQ(made.stride, pieces.stride);
    EXPECT_EQ(made.runs, pieces.runs);
  };
  expect({"t", {4, 6}}, {0, 24, 24, 1});
  expect({"t", {4, 6}, 0, {1, 3}}, {6, 12, 24, 1});
  expect({"t", {4, 6}, 1, {2, 5}}, {2, 3, 6, 4});
  expect({"t", {4, 6}, 1, {0, 6}}, {0, 24, 24, 1});
  expect({"t", {2, 3, 5}, 1, {1, 2}}, {5, 5, 15, 2});
}

TEST(Allocated, AFailureNamesTheTensorAndItsBytes) {
  try {
    allocated({"model.embed_tokens.weight", {1 << 30, 1 << 20}}, mx::float32);
    ADD_FAILURE() << "this machine has 4 PB";
  } catch (const InputError& error) {
    EXPECT_EQ(std::string(error.what())
                  .find("out of memory: 4503599627370496 bytes for tensor \"model.embed_tokens.weight\""),
              0u)
        << error.what();
  }
}

TEST(RandomSource, PartsAreCutFromOneTensor) {
  const RandomSource source(mx::bfloat16, 4);
  for (const Element element : {Element::number, Element::codes}) {
    const bool codes = element == Element::codes;
    const Slice whole{"layer.weight", {300, 400}, -1, {}, element};
    const auto all = source.read(whole, no_report);
    EXPECT_EQ(all.dtype(), codes ? mx::uint32 : mx::bfloat16);
    EXPECT_EQ(all.nbytes(), source.bytes(whole));
    for (const int axis : {0, 1}) {
      const Slice part{"layer.weight", {300, 400}, axis, {100, 250}, element};
      const mx::array cut = axis == 0 ? mx::slice(all, {100, 0}, {250, 400}, mx::Device::cpu)
                                      : mx::slice(all, {0, 100}, {300, 250}, mx::Device::cpu);
      EXPECT_EQ(values_of(source.read(part, no_report)), values_of(cut));
      EXPECT_EQ(source.bytes(part), cut.nbytes());
    }
  }
}

TEST(RandomSource, MatricesDeviateByTwoHundredths) {
  const auto expect_spread = [](const std::vector<float>& values) {
    double sum = 0, squares = 0;
    for (const float value : values) {
      sum += value;
      squares += static_cast<double>(value) * value;
    }
    // 160,000 values: four standard errors of the mean are 2e-4, of the deviation less than 1 %.
    EXPECT_NEAR(sum / static_cast<double>(values.size()), 0, 2e-4);
    EXPECT_NEAR(std::sqrt(squares / static_cast<double>(values.size())), 0.02, 2e-4);
  };
  expect_spread(values_of(RandomSource(mx::float16, 0).read({"m.weight", {400, 400}}, no_report)));
  for (const int bits : {4, 8}) {
    const RandomSource source(mx::float16, bits);
    const auto codes = source.read({"m.weight", {400, 384 * bits / 32}, -1, {}, Element::codes}, no_report);
    const auto scales = source.read({"m.scales", {400, 384 / 64}}, no_report);
    const auto biases = source.read({"m.biases", {400, 384 / 64}}, no_report);
    expect_spread(values_of(mx::dequantize(codes, scales, biases, 64, bits, "affine", std::nullopt,
                                           std::nullopt, mx::Device::cpu)));
  }
}

TEST(RandomSource, NormsAreOneAndBiasesZero) {
  const RandomSource source(mx::float16, 0);
  EXPECT_EQ(values_of(source.read({"norm.weight", {3}}, no_report)), (std::vector<float>{1, 1, 1}));
  EXPECT_EQ(values_of(source.read({"q.bias", {4}, 0, {1, 3}}, no_report)), (std::vector<float>{0, 0}));
}

}  // namespace
}  // namespace tandem::weights
