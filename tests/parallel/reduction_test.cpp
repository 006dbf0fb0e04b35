#include "parallel/reduction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;

template <typename T>
T reduce_two(ReduceOp op, mx::Dtype dtype, T a, T b) {
  T out{};
  const std::vector<const char*> parts{reinterpret_cast<const char*>(&a), reinterpret_cast<const char*>(&b)};
  reduce(op, dtype, parts, reinterpret_cast<char*>(&out), 1);
  return out;
}

TEST(Reduction, IntegersWrapAround) {
  EXPECT_EQ(reduce_two<std::int32_t>(ReduceOp::sum, mx::int32, INT32_MAX, 1), INT32_MIN);
  EXPECT_EQ(reduce_two<std::int64_t>(ReduceOp::sum, mx::int64, INT64_MIN, -1), INT64_MAX);
  EXPECT_EQ(reduce_two<std::int8_t>(ReduceOp::sum, mx::int8, -100, -100), 56);
  EXPECT_EQ(reduce_two<std::uint8_t>(ReduceOp::sum, mx::uint8, 200, 100), 44);
}

TEST(Reduction, NotANumberWins) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const auto op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
    EXPECT_TRUE(std::isnan(reduce_two(op, mx::float32, nan, 1.0f)));
    EXPECT_TRUE(std::isnan(reduce_two(op, mx::float32, 1.0f, nan)));
    EXPECT_EQ(reduce_two<std::uint16_t>(op, mx::bfloat16, 0x7fff, 0x3f80), 0x7fc0);
    EXPECT_EQ(reduce_two<std::uint16_t>(op, mx::bfloat16, 0x3f80, 0xffff), 0x7fc0);
  }
}

// Bits of bfloat16 and float16.
TEST(Reduction, HalvesRoundToNearestEven) {
  const auto bf16 = [](std::uint16_t a, std::uint16_t b) {
    return reduce_two(ReduceOp::sum, mx::bfloat16, a, b);
  };
  EXPECT_EQ(bf16(0x3f80, 0x3b80), 0x3f80) << "1 + 2^-8 is a tie: to 1";
  EXPECT_EQ(bf16(0x3f81, 0x3b80), 0x3f82) << "1 + 2^-7 + 2^-8 is a tie: to 1 + 2^-6";
  EXPECT_EQ(bf16(0x3f80, 0x3b81), 0x3f81) << "above the tie";
  EXPECT_EQ(bf16(0x7f7f, 0x7f7f), 0x7f80) << "infinity";
  const auto f16 = [](std::uint16_t a, std::uint16_t b) {
    return reduce_two(ReduceOp::sum, mx::float16, a, b);
  };
  EXPECT_EQ(f16(0x3c00, 0x1000), 0x3c00) << "1 + 2^-11 is a tie: to 1";
  EXPECT_EQ(f16(0x3c01, 0x1000), 0x3c02) << "1 + 2^-10 + 2^-11 is a tie";
  EXPECT_EQ(f16(0x7bff, 0x7bff), 0x7c00) << "infinity";
  EXPECT_EQ(f16(0x0001, 0x0001), 0x0002) << "subnormal";
}

TEST(Reduction, RoundsOnceOverManyParts) {
  // 1 + eight times 2^-9: rounded after each addition it would stay 1.
  const std::uint16_t one = 0x3f80, small = 0x3b00;
  std::vector<const char*> parts(9, reinterpret_cast<const char*>(&small));
  parts[0] = reinterpret_cast<const char*>(&one);
  std::uint16_t out = 0;
  reduce(ReduceOp::sum, mx::bfloat16, parts, reinterpret_cast<char*>(&out), 1);
  EXPECT_EQ(out, 0x3f82);
}

TEST(Reduction, MayWriteIntoAPart) {
  std::vector<float> a(3000, 1.0f), b(3000, 2.0f);
  const std::vector<const char*> parts{reinterpret_cast<char*>(a.data()), reinterpret_cast<char*>(b.data())};
  reduce(ReduceOp::sum, mx::float32, parts, reinterpret_cast<char*>(b.data()), b.size());
  EXPECT_EQ(b, std::vector<float>(3000, 3.0f));
}

TEST(Reduction, RefusesComplexNumbers) {
  char byte = 0;
  EXPECT_THROW(reduce(ReduceOp::sum, mx::complex64, {}, &byte, 0), std::invalid_argument);
}

}  // namespace
}  // namespace tandem::parallel
