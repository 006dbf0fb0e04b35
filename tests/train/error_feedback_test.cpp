#include "train/error_feedback.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>

#include <cmath>

namespace tandem::train {
namespace {

namespace mx = mlx::core;

float only(mx::array x) { return x.item<float>(); }

// 1 + 2^-10 is 1 as bfloat16: without the feedback nothing of the small part would ever arrive.
TEST(ErrorFeedback, AllArrivesInTheEnd) {
  const float gradient = 1.0F + std::ldexp(1.0F, -10);
  ErrorFeedback feedback(2);
  float sum = 0;
  for (int step = 0; step < 64; ++step) {
    const float sent = only(feedback.rounded(1, mx::array(gradient)));
    EXPECT_EQ(sent, only(mx::astype(mx::astype(mx::array(sent), mx::bfloat16), mx::float32)));
    sum += sent;
    feedback.take();
  }
  EXPECT_NEAR(sum, 64 * gradient, std::ldexp(1.0F, -8));
  EXPECT_GT(sum, 64.0F);
}

TEST(ErrorFeedback, ASkippedStepLeavesWhatWasHeld) {
  const float gradient = 1.0F + std::ldexp(1.0F, -10);
  ErrorFeedback feedback(1);
  feedback.rounded(0, mx::array(gradient));
  feedback.take();
  feedback.rounded(0, mx::array(INFINITY));
  feedback.forget();
  EXPECT_EQ(only(feedback.left_over()[0]), std::ldexp(1.0F, -10));
  feedback.clear();
  EXPECT_EQ(only(feedback.left_over()[0]), 0.0F);
}

}  // namespace
}  // namespace tandem::train
