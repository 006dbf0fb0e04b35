// What workers tell of a load.
#include "cluster/loading.h"

#include <gtest/gtest.h>

#include "base/limits.h"
#include "cluster/group_client.h"

namespace tandem::cluster {
namespace {

TEST(Progress, IsToldAtTheStartAndTheEndAndSeldomBetween) {
  const auto model = source_folder() / "assets/demo-model";
  std::vector<Progress> last;
  int told = 0;
  const auto begin = std::chrono::steady_clock::now();
  const Conductor conductor(ConductorOptions{.model = model.string(),
                                             .plan = local_plan({{1, 1}}, models::load_config(model).layers),
                                             .device = "cpu",
                                             .program = TANDEM_PROGRAM},
                            [&](const std::vector<Progress>& ranks) {
                              last = ranks;
                              ++told;
                            });
  const auto time = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(told, 4);
  EXPECT_LE(told, 4 + 2 * (time / limits::progress_every));
  ASSERT_EQ(last.size(), 2u);
  for (std::size_t rank = 0; rank < last.size(); ++rank) {
    EXPECT_EQ(last[rank].total_bytes, conductor.ranks()[rank].ready->weight_bytes);
    EXPECT_EQ(last[rank].read_bytes, last[rank].total_bytes);
  }
}

}  // namespace
}  // namespace tandem::cluster
