#include "parallel/broadcast.h"

#include <gtest/gtest.h>

#include "parallel/ranks.h"

namespace tandem::parallel {
namespace {

TEST(Broadcast, EveryRankGetsTheRootsBytes) {
  for (const int ranks : {2, 3, 5}) {
    const MeetingPoint meeting(ranks);
    const auto errors = run_ranks(ranks, [&](int rank) {
      const auto group = meeting.group(rank);
      for (const int root : {0, ranks - 1}) {
        for (const std::size_t size : {0u, 1u, 251u, 252u, 253u, 256u, 1000u, 1'000'000u}) {
          // What the others bring is ignored.
          const auto own = rank == root ? message(size) : message(17);
          EXPECT_EQ(broadcast(group, own, root), message(size))
              << ranks << " ranks, root " << root << ", " << size;
        }
      }
    });
    EXPECT_EQ(errors, std::vector<std::string>(ranks));
  }
}

TEST(Broadcast, AloneGivesItsBytesBack) {
  EXPECT_EQ(broadcast(single_rank_group(), message(5), 0), message(5));
}

}  // namespace
}  // namespace tandem::parallel
