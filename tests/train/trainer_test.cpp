#include "train/trainer.h"

#include <gtest/gtest.h>

namespace tandem::train {
namespace {

TEST(Recomputation, IsOfAsFewLayersAsMemoryAllows) {
  const struct {
    double needed, free;
    int every;
  } table[] = {{0, 0, 0},     {0, -5, 0},    {79, 100, 0},   {83, 100, 27},  {87, 100, 12},
               {159, 100, 2}, {161, 100, 1}, {1000, 100, 1}, {1000, -100, 1}};
  for (const auto& row : table)
    EXPECT_EQ(recomputed_every(row.needed, row.free), row.every) << row.needed << " of " << row.free;
}

}  // namespace
}  // namespace tandem::train
