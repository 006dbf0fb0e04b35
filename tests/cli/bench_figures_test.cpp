#include "cli/bench_figures.h"

#include <gtest/gtest.h>

namespace tandem::cli {
namespace {

TEST(BenchFigures, SpreadIsMedianLeastAndMost) {
  for (const auto& [values, median, least, most] :
       std::vector<std::tuple<std::vector<double>, double, double, double>>{
           {{3}, 3, 3, 3}, {{4, 1}, 2.5, 1, 4}, {{5, 1, 3}, 3, 1, 5}, {{9, 2, 4, 7}, 5.5, 2, 9}}) {
    const Spread spread = spread_of(values);
    EXPECT_EQ(spread.median, median);
    EXPECT_EQ(spread.least, least);
    EXPECT_EQ(spread.most, most);
  }
  const Phase phase{10, {2, 5, 4}};
  EXPECT_EQ(phase.tokens_per_s().median, 2.5);
  EXPECT_EQ(phase.tokens_per_s().most, 5);
}

TEST(BenchFigures, SharesOfTheWallTimeAddUp) {
  const TimeShares shares = shares_of({8, 2}, 10);
  EXPECT_DOUBLE_EQ(shares.compute, 0.6);
  EXPECT_DOUBLE_EQ(shares.link, 0.2);
  EXPECT_DOUBLE_EQ(shares.rest, 0.2);
  EXPECT_EQ(shares_of({0, 0}, 0).rest, 0);
  EXPECT_EQ(shares_of({11, 0}, 10).rest, 0);  // another rank's clock: never negative
}

BenchFigures two_ranks() {
  BenchFigures figures{"m", "bf16", "2 ranks", 2};
  figures.prefill = {100, {2, 4}, 6, {{6, 1}, {5, 1}}};
  figures.decode = {8, {1, 1}, 3, {{3, 1.5}, {3, 0}}};
  for (int i = 0; i < 2; ++i) {
    cluster::RankState rank{.host = "local"};
    rank.ready = cluster::Ready{.weight_bytes = 3'000'000'000, .step_bytes = 2'000'000'000, .device = "cpu"};
    figures.ranks.push_back(rank);
  }
  return figures;
}

TEST(BenchFigures, JsonHasSpeedsAndEachRanksShares) {
  const auto json = to_json(two_ranks(), {{{"rank", 0}}, {{"rank", 1}}});
  EXPECT_EQ(json["prefill"]["tokens_per_s"]["median"], 37.5);
  EXPECT_EQ(json["prefill"]["seconds"]["least"], 2);
  EXPECT_EQ(json["decode"]["tokens_per_s"]["median"], 8);
  EXPECT_EQ(json["decode"]["read_bytes_per_s"], 32e9);
  EXPECT_EQ(json["ranks"][1]["rank"], 1);
  EXPECT_EQ(json["ranks"][0]["decode"]["link"], 0.5);
  EXPECT_EQ(json["ranks"][1]["decode"]["read_bytes_per_s"], 16e9);
}

TEST(BenchFigures, WhatIsNotMeasuredIsNotPrinted) {
  auto figures = two_ranks();
  EXPECT_NE(describe(figures).find("32.00 GB/s"), std::string::npos) << describe(figures);
  figures.decode = {};
  EXPECT_EQ(describe(figures).find("decode"), std::string::npos);
  EXPECT_FALSE(to_json(figures, {{{"rank", 0}}, {{"rank", 1}}}).contains("decode"));
}

TEST(BenchFigures, BitsReplaceWhatTheConfigSaid) {
  const nlohmann::json config{{"torch_dtype", "float32"}, {"quantization_config", {{"quant_method", "fp8"}}}};
  EXPECT_EQ(config_with_bits(config, "16", 64), (nlohmann::json{{"torch_dtype", "float16"}}));
  EXPECT_EQ(config_with_bits(config, "bf16", 64), (nlohmann::json{{"torch_dtype", "bfloat16"}}));
  const auto four = config_with_bits(config, "4", 32);
  EXPECT_EQ(four["quantization"], (nlohmann::json{{"bits", 4}, {"group_size", 32}}));
}

}  // namespace
}  // namespace tandem::cli
