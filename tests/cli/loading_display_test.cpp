#include "cli/loading_display.h"

#include <gtest/gtest.h>

namespace tandem::cli {
namespace {

using cluster::Progress;

const std::vector<std::string> hosts{"local", "studio2"};

TEST(LoadingLines, HaveOneForEachRank) {
  const std::vector<Progress> ranks{{5'000'000'000, 10'000'000'000}, {0, 0}};
  EXPECT_EQ(loading_lines(hosts, ranks, {100e6, 0}, 80, 24),
            (std::vector<std::string>{
                "███░░░  50 %    5.0 GB of  10.0 GB  100.0 MB/s      0:50 left  rank 0 (local)  ",
                "rank 1 (studio2) has not begun"}));
}

TEST(LoadingLines, HaveABarWhereThereIsRoom) {
  const std::vector<Progress> ranks{{1, 2}, {2, 2}};
  const auto lines = loading_lines(hosts, ranks, {0, 0}, 200, 24);
  EXPECT_TRUE(lines[0].starts_with("██████████░░░░░░░░░░  50 %")) << lines[0];
  EXPECT_TRUE(lines[1].starts_with("████████████████████ 100 %")) << lines[1];
}

TEST(LoadingLines, AreNoLongerThanATerminalsLine) {
  for (const std::size_t columns : {2, 20, 40, 70}) {
    for (const auto& line : loading_lines(hosts, {{1, 2}, {0, 0}}, {0, 0}, columns, 24))
      EXPECT_LT(line.size(), columns) << line;
  }
}

TEST(LoadingLines, AreOneForAllWhereATerminalHasFewerRows) {
  const std::vector<Progress> ranks{{3'000'000, 10'000'000}, {2'000'000, 10'000'000}};
  EXPECT_EQ(loading_lines(hosts, ranks, {1e6, 2e6}, 80, 2),
            std::vector<std::string>{
                "███░░░░░░░░  25 %    5.0 MB of  20.0 MB    3.0 MB/s      0:05 left  all 2 ranks"});
  EXPECT_EQ(loading_lines(hosts, ranks, {1e6, 2e6}, 80, 3).size(), 2u);
  EXPECT_EQ(loading_lines({"local"}, {{1, 2}}, {0}, 80, 1).size(), 1u);
}

}  // namespace
}  // namespace tandem::cli
