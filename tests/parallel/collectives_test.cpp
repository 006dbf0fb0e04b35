#include "parallel/collectives.h"

#include <gtest/gtest.h>
#include <mlx/ops.h>

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

TEST(Collectives, AloneAreTheIdentity) {
  const mx::array x = mx::ones({2, 3});
  EXPECT_EQ(sum(x, single_rank_group()).id(), x.id());
  EXPECT_EQ(gather_columns(x, {3}, single_rank_group()).id(), x.id());
}

}  // namespace
}  // namespace tandem::parallel
