#include "parallel/collectives.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <numeric>

#include "parallel/ranks.h"

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;

TEST(Collectives, ColumnsOfAnyNumberStandSideBySide) {
  for (const auto& parts : std::vector<std::vector<int>>{{3, 1, 2}, {2, 2}, {1, 5}, {1, 2, 3, 4}}) {
    const int ranks = static_cast<int>(parts.size());
    const int width = std::accumulate(parts.begin(), parts.end(), 0);
    const MeetingPoint meeting(ranks);
    const auto errors = run_ranks(ranks, [&](int rank) {
      const auto group = meeting.group(rank);
      const int first = std::accumulate(parts.begin(), parts.begin() + rank, 0);
      const mx::array expected = mx::reshape(mx::arange(3 * width, mx::float32), {3, width});
      const mx::array own = mx::slice(expected, {0, first}, {3, first + parts[rank]});
      EXPECT_TRUE(mx::array_equal(gather_columns(own, parts, group), expected).item<bool>());
      const mx::array total = sum(mx::full({2, 3}, static_cast<float>(rank + 1)), group);
      EXPECT_TRUE(mx::array_equal(total, mx::full({2, 3}, ranks * (ranks + 1) / 2.0F)).item<bool>());
    });
    EXPECT_EQ(errors, std::vector<std::string>(ranks));
  }
}

TEST(Collectives, GatheredInOrderHaveThePartOfTheSumAsGradient) {
  for (const int ranks : {1, 2, 3}) {
    const MeetingPoint meeting(ranks);
    const auto errors = run_ranks(ranks, [&](int rank) {
      const auto group = meeting.group(rank);
      // What rank r multiplies place i with.
      const auto factor = [&](int r, int i) { return static_cast<float>((r + 1) * (i + 2)); };
      std::vector<float> own, factors, expected;
      for (int i = 0; i < 2 * ranks; ++i) factors.push_back(factor(rank, i));
      for (int i = 0; i < 2; ++i) {
        own.push_back(static_cast<float>(10 * rank + i));
        float sum = 0;
        for (int r = 0; r < ranks; ++r) sum += factor(r, 2 * rank + i);
        expected.push_back(sum);
      }
      InOrder order(group);
      const auto loss = [&](const mx::array& x) {
        const mx::array all = order.gather(x, mx::array(1.0F));
        for (int r = 0; r < ranks; ++r)
          EXPECT_EQ(mx::slice(all, {2 * r + 1}, {2 * r + 2}).item<float>(), 10.0F * r + 1);
        return mx::sum(mx::multiply(all, mx::array(factors.data(), {2 * ranks}, mx::float32)));
      };
      const auto [value, gradient] = mx::value_and_grad(loss)(mx::array(own.data(), {2}, mx::float32));
      EXPECT_TRUE(mx::array_equal(gradient, mx::array(expected.data(), {2}, mx::float32)).item<bool>());
    });
    EXPECT_EQ(errors, std::vector<std::string>(ranks));
  }
}

// Evaluated the other way round on every second rank.
TEST(Collectives, InOrderMeetThoughRanksEvaluateThemInOtherOrders) {
  constexpr int ranks = 2, count = 3;  // MLX lets a process have no more than some tasks under way
  const MeetingPoint meeting(ranks);
  const auto errors = run_ranks(ranks, [&](int rank) {
    InOrder order(meeting.group(rank));
    std::vector<mx::array> sums;
    for (int i = 0; i < count; ++i)
      sums.push_back(order.sum(mx::full({4}, static_cast<float>(i * (rank + 1)))));
    std::vector<mx::array> all = sums;
    if (rank == 1) std::reverse(all.begin(), all.end());
    mx::eval(all);
    for (int i = 0; i < count; ++i) EXPECT_EQ(mx::max(sums[i]).item<float>(), 3.0F * i);
  });
  EXPECT_EQ(errors, std::vector<std::string>(ranks));
}

TEST(Collectives, AloneAreTheIdentity) {
  const mx::array x = mx::ones({2, 3});
  EXPECT_EQ(sum(x, single_rank_group()).id(), x.id());
  EXPECT_EQ(gather_columns(x, {3}, single_rank_group()).id(), x.id());
}

}  // namespace
}  // namespace tandem::parallel
