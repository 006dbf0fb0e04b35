#include "parallel/plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::parallel {
namespace {

std::vector<int> ends_of(const std::vector<Range>& ranges) {
  std::vector<int> ends;
  int next = 0;
  for (const auto& range : ranges) {
    EXPECT_EQ(range.begin, next);
    EXPECT_GT(range.end, range.begin);
    next = range.end;
    ends.push_back(next);
  }
  return ends;
}

TEST(Plan, LayersAreCutEvenlyBySize) {
  const struct {
    std::vector<double> sizes;
    int stages;
    std::vector<int> ends;
  } table[] = {{{1}, 1, {1}},
               {std::vector<double>(22, 7), 2, {11, 22}},
               {std::vector<double>(22, 7), 1, {22}},
               {{1, 1, 1}, 2, {2, 3}},
               {{1, 1, 1}, 3, {1, 2, 3}},
               {std::vector<double>(7, 0.1), 3, {2, 5, 7}},
               {{1, 4, 4, 4}, 2, {2, 4}},
               {{1, 4, 4, 4, 4}, 2, {3, 5}},
               {{100, 1, 1, 1}, 3, {1, 2, 4}},
               {{1, 1, 1, 100}, 3, {2, 3, 4}}};
  for (const auto& row : table) EXPECT_EQ(ends_of(split_layers(row.sizes, row.stages)), row.ends);
  for (int layers = 1; layers < 12; ++layers) {
    for (int stages = 1; stages <= layers; ++stages) {
      const auto ranges = split_layers(std::vector<double>(layers, 3), stages);
      EXPECT_EQ(ends_of(ranges).back(), layers);
      for (const auto& range : ranges) EXPECT_LE(range.size(), layers / stages + 1);
    }
  }
}

TEST(Plan, EachHostIsAStage) {
  const Plan plan = pipeline_plan({"local", "studio2"}, {1, 1, 1, 1, 1});
  ASSERT_EQ(plan.stages.size(), 2u);
  EXPECT_EQ(plan.stages[0].end_layer, 3);
  EXPECT_EQ(plan.stages[1].ranks[0].host, "studio2");
  EXPECT_EQ(to_json(plan_from_json(to_json(plan))), to_json(plan));
}

std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(Plan, MoreStagesThanLayersAreRefused) {
  const auto message = refusal([] { pipeline_plan({"local", "local", "local"}, {1, 1}); });
  EXPECT_NE(message.find("3 pipeline stages"), std::string::npos) << message;
  EXPECT_NE(message.find("2 layers"), std::string::npos) << message;
}

TEST(Plan, NumbersBeyondTheirRangeAreRefusedWithIt) {
  const struct {
    const char *layers, *share, *words;
  } table[] = {{"[0, 6]", "0", "above 0, at most 1000000"},
               {"[0, 6]", "-1", "above 0, at most 1000000"},
               {"[0, 6]", "1000001", "above 0, at most 1000000"},
               {"[0, 6]", "\"half\"", "above 0, at most 1000000"},
               {"[0, 100001]", "1", "0 <= first < end, at most 100000"},
               {"[-1, 6]", "1", "0 <= first < end, at most 100000"},
               {"[6, 6]", "1", "0 <= first < end, at most 100000"}};
  for (const auto& row : table) {
    const auto json = nlohmann::json::parse(fmt::format(
        R"({{"stages": [{{"layers": {}, "ranks": [{{"share": {}}}]}}]}})", row.layers, row.share));
    const auto message = refusal([&] { plan_from_json(json); });
    EXPECT_NE(message.find(row.words), std::string::npos) << message;
  }
}

TEST(Plan, StagesMustHaveEveryLayerOnceInOrder) {
  const Divisible model{.layers = 6, .query_heads = 4, .ffn_columns = 8, .vocabulary = 8};
  const auto plan = [](std::vector<std::pair<int, int>> ranges, int ranks = 1) {
    Plan plan;
    for (const auto& [first, end] : ranges)
      plan.stages.push_back({first, end, std::vector<PlannedRank>(ranks)});
    return plan;
  };
  for (const auto& good : {plan({{0, 6}}), plan({{0, 1}, {1, 6}}), plan({{0, 3}, {3, 6}}, 4)})
    EXPECT_EQ(refusal([&] { validate(good, model); }), "");
  const struct {
    Plan plan;
    const char* words;
  } table[] = {{plan({{0, 5}}), "0 to 5"},
               {plan({{0, 3}, {4, 6}}), "0 to 3, 4 to 6"},
               {plan({{0, 4}, {3, 6}}), "0 to 4, 3 to 6"},
               {plan({{3, 6}, {0, 3}}), "in order"},
               {plan({{0, 3}, {3, 7}}), "0 to 6"},
               {plan({{0, 3}, {3, 3}, {3, 6}}), "3 to 3"},
               {plan({{0, 3}, {3, 6}}, 5), "at most 4"},
               {plan({{0, 3}, {3, 6}}, limits::ranks), "128 ranks"}};
  for (const auto& row : table) {
    const auto message = refusal([&] { validate(row.plan, model); });
    EXPECT_NE(message.find(row.words), std::string::npos) << message;
  }
}

TEST(Plan, ReplicasHaveTheStagesOfGroupsOneAfterTheOther) {
  const auto plan = pipeline_plan({"a", "b", "c", "d"}, {1, 1, 1, 1, 1, 1}, 2);
  ASSERT_EQ(plan.stages.size(), 2U);
  EXPECT_EQ(plan.stages[1].first_layer, 3);
  EXPECT_EQ(plan.stages[0].ranks[0].host + plan.stages[0].ranks[1].host, "ac");
  EXPECT_EQ(plan.stages[1].ranks[0].host + plan.stages[1].ranks[1].host, "bd");
  // Rows stay in a replica.
  EXPECT_EQ(plan.place(3).source, 1);
  EXPECT_EQ(plan.place(0).targets, std::vector<int>{2});
  EXPECT_NE(refusal([&] {
              pipeline_plan({"a", "b", "c"}, {1, 1}, 2);
            }).find("equal groups"),
            std::string::npos);
}

TEST(Plan, ReplicasShareNoMatrices) {
  const Divisible model{.layers = 6, .query_heads = 4, .ffn_columns = 8, .vocabulary = 8};
  const auto refused = [&](int ranks, int replicas) {
    const Plan plan{{{0, 6, std::vector<PlannedRank>(ranks)}}};
    return refusal([&] { validate(plan, model, replicas); });
  };
  EXPECT_EQ(refused(8, 8), "");
  EXPECT_EQ(refused(8, 2), "");
  EXPECT_EQ(refused(8, 0), "");
  EXPECT_NE(refused(10, 2).find("5 ranks"), std::string::npos);
  EXPECT_NE(refused(8, 1).find("8 ranks"), std::string::npos);
}

// Every rank of a stage has one source, and is the target of just that one.
TEST(Plan, RanksHandRowsFromStageToStage) {
  for (const auto& sizes :
       std::vector<std::vector<int>>{{1}, {3}, {1, 1}, {2, 2}, {1, 3}, {3, 1}, {2, 5, 3}}) {
    Plan plan;
    for (const int size : sizes) plan.stages.push_back({0, 1, std::vector<PlannedRank>(size)});
    int rank = 0;
    for (int stage = 0; stage < static_cast<int>(sizes.size()); ++stage) {
      for (int i = 0; i < sizes[stage]; ++i, ++rank) {
        const Place place = plan.place(rank);
        EXPECT_EQ(place.stages, static_cast<int>(sizes.size()));
        EXPECT_EQ(place.stage, stage);
        EXPECT_EQ(place.rank, i);
        EXPECT_EQ(place.leaders.back(), plan.world_size() - sizes.back());
        EXPECT_EQ(place.leaders.size(), sizes.size());
        EXPECT_EQ(plan.place(place.leaders[stage]).stage, stage);
        EXPECT_EQ(plan.place(place.leaders[stage]).rank, 0);
        EXPECT_EQ(place.gradient_source < 0, place.last());
        for (int other = 0; other < plan.world_size(); ++other) {
          const auto& targets = plan.place(other).gradient_targets;
          EXPECT_EQ(std::count(targets.begin(), targets.end(), rank), other == place.gradient_source ? 1 : 0);
        }
        EXPECT_EQ(place.source < 0, stage == 0);
        if (stage > 0) {
          EXPECT_EQ(plan.place(place.source).stage, stage - 1);
        }
        for (int other = 0; other < plan.world_size(); ++other) {
          const auto& targets = place.targets;
          EXPECT_EQ(std::count(targets.begin(), targets.end(), other), plan.place(other).source == rank);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tandem::parallel
