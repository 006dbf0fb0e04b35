#include "cli/pin.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace tandem::cli {
namespace {

using Cores = std::vector<std::vector<int>>;

parallel::Plan plan_of(const std::vector<std::string>& hosts) {
  return parallel::tensor_parallel_plan(hosts, 1);
}

TEST(Pin, GivesEachLocalRankItsCores) {
  const auto one = plan_of({"local"}), two = plan_of({"local", "local"});
  EXPECT_EQ(parse_pin({}, two), Cores{});
  EXPECT_EQ(parse_pin({"0"}, one), (Cores{{0}}));
  EXPECT_EQ(parse_pin({"0", "1"}, two), (Cores{{0}, {1}}));
  EXPECT_EQ(parse_pin({"0-3", "4-4"}, two), (Cores{{0, 1, 2, 3}, {4}}));
  EXPECT_EQ(parse_pin({"5"}, plan_of({"studio2", "local"})), (Cores{{5}}));
}

TEST(Pin, NamesTheWordThatIsNoCore) {
  for (const std::string word : {"", "x", "-1", "3-", "3-2", "1,2", "0-3x", "1024", "99999999999", " 1"}) {
    try {
      parse_pin({word}, plan_of({"local"}));
      ADD_FAILURE() << '"' << word << "\" passed";
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find('"' + word + '"'), std::string::npos) << error.what();
    }
  }
}

TEST(Pin, WantsOneEntryForEachLocalRank) {
  for (const auto& [words, hosts] :
       std::vector<std::pair<std::vector<std::string>, std::vector<std::string>>>{
           {{"0"}, {"local", "local"}}, {{"0", "1"}, {"local"}}, {{"0", "1"}, {"local", "studio2"}}}) {
    EXPECT_THROW(parse_pin(words, plan_of(hosts)), InputError);
  }
}

}  // namespace
}  // namespace tandem::cli
