#include "parallel/mlx_backends.h"

#include <gtest/gtest.h>
#include <mlx/distributed/distributed.h>

#include <cstdlib>
#include <optional>

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

TEST(MlxBackends, OneRankHasNothingToOffer) { EXPECT_TRUE(automatic_backends(8, 1).empty()); }

const std::vector<Endpoint> two{{{"127.0.0.1"}, 1}, {{"127.0.0.1"}, 2}};

std::string refusal(const char* backend, const std::vector<Endpoint>& endpoints) {
  try {
    join_mlx_group(backend, 0, endpoints);
  } catch (const InputError& error) {
    return error.what();
  }
  return "it joined";
}

TEST(MlxBackends, SaysWhyItCannotJoin) {
  EXPECT_NE(refusal("ring", {two[0]}).find("two ranks"), std::string::npos);
  EXPECT_NE(refusal("abacus", two).find("--backend abacus"), std::string::npos);
}

TEST(MlxBackends, SaysWhereItCannotWriteItsHostFile) {
  if (!mlx::core::distributed::is_available("ring")) GTEST_SKIP() << "MLX without ring";
  const char* was = std::getenv("TMPDIR");
  const auto before = was ? std::optional<std::string>(was) : std::nullopt;
  ::setenv("TMPDIR", "/dev/null", 1);  // no folder
  const std::string no_folder = refusal("ring", two);
  ::setenv("TMPDIR", "/dev/fd", 1);  // one that takes no files
  const std::string no_files = refusal("ring", two);
  if (before) {
    ::setenv("TMPDIR", before->c_str(), 1);
  } else {
    ::unsetenv("TMPDIR");
  }
  EXPECT_NE(no_folder.find("set TMPDIR"), std::string::npos) << no_folder;
  EXPECT_NE(no_files.find("cannot make /dev/fd/tandem-ring-"), std::string::npos) << no_files;
}

}  // namespace
}  // namespace tandem::parallel
