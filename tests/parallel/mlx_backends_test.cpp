#include "parallel/mlx_backends.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace tandem::parallel {
namespace {

TEST(MlxBackends, AutoTakesTheBestThatEveryRankHas) {
  struct Row {
    const char* wanted;
    std::vector<std::vector<std::string>> offers;
    const char* chosen;
  };
  for (const Row& row :
       {Row{"auto", {{}, {}}, "tcp"}, Row{"auto", {{"jaccl"}, {"jaccl"}}, "jaccl"},
        Row{"auto", {{"jaccl"}, {}}, "tcp"}, Row{"auto", {{"jaccl", "nccl"}, {"nccl"}}, "nccl"},
        Row{"ring", {{"jaccl"}, {"jaccl"}}, "ring"}, Row{"tcp", {{"nccl"}, {"nccl"}}, "tcp"}}) {
    EXPECT_EQ(choose_backend(row.wanted, row.offers), row.chosen);
  }
}

TEST(MlxBackends, OneRankHasNothingToOffer) { EXPECT_TRUE(automatic_backends(1, true).empty()); }

TEST(MlxBackends, SaysWhyItCannotJoin) {
  const std::vector<Endpoint> two{{{"127.0.0.1"}, 1}, {{"127.0.0.1"}, 2}};
  const auto refusal = [&](const char* backend, const std::vector<Endpoint>& endpoints) -> std::string {
    try {
      join_mlx_group(backend, 0, endpoints);
    } catch (const InputError& error) {
      return error.what();
    }
    return "it joined";
  };
  EXPECT_NE(refusal("mpi", two).find("mpirun"), std::string::npos);
  EXPECT_NE(refusal("ring", {two[0]}).find("two ranks"), std::string::npos);
  EXPECT_NE(refusal("abacus", two).find("--backend abacus"), std::string::npos);
}

}  // namespace
}  // namespace tandem::parallel
