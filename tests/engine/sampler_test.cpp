#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>
#include <vector>

namespace tandem::engine {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

int sampled(std::vector<float> logits, const Sampling& sampling, int position = 0) {
  return sample(logits, sampling, {}, {}, position);
}

// Probabilities 0.5, 0.25, 0.15, 0.07, 0.03 of ids 3, 0, 4, 1, 2.
const std::vector<double> probabilities{0.25, 0.07, 0.03, 0.5, 0.15};
std::vector<float> logits_of_probabilities() {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + 3));
  return logits;
}

TEST(SamplerTest, GreedyTakesTheMostLikelyAndTheLowestOfTies) {
  const struct {
    std::vector<float> logits;
    int wanted;
  } table[] = {{{1, 3, 2}, 1},  {{3, 3, 3}, 0}, {{-1, 2, 2}, 1},
               {{0, -0.0F}, 0}, {{-5}, 0},      {{1, 1 + std::numeric_limits<float>::epsilon()}, 1}};
  for (const auto& row : table) {
    for (const int position : {0, 1, 1000}) {
      EXPECT_EQ(sampled(row.logits, {.temperature = 0}, position), row.wanted);
    }
  }
}

TEST(SamplerTest, TopKTopPAndMinPLeaveTheseTokens) {
  const struct {
    const char* name;
    Sampling sampling;
    std::set<int> left;
  } table[] = {
      {"all", {}, {0, 1, 2, 3, 4}},
      {"top-k 1", {.top_k = 1}, {3}},
      {"top-k 2", {.top_k = 2}, {3, 0}},
      {"top-k of all", {.top_k = 5}, {0, 1, 2, 3, 4}},
      {"top-k of more than all", {.top_k = 1 << 30}, {0, 1, 2, 3, 4}},
      {"top-p below the first", {.top_p = 1e-6F}, {3}},
      {"top-p 0.6: until the sum reaches it", {.top_p = 0.6F}, {3, 0}},
      {"top-p 0.8", {.top_p = 0.8F}, {3, 0, 4}},
      {"top-p 0.999", {.top_p = 0.999F}, {0, 1, 2, 3, 4}},
      {"min-p of the likeliest", {.min_p = 1}, {3}},
      {"min-p 0.2: relative to the likeliest", {.min_p = 0.2F}, {3, 0, 4}},
      // 0.55 of the two that are left is less than the first one.
      {"top-p after top-k", {.top_k = 2, .top_p = 0.55F}, {3}},
      {"without top-k", {.top_p = 0.55F}, {3, 0}},
      // Squared, the first has 0.73 of all.
      {"temperature before top-p", {.temperature = 0.5F, .top_p = 0.7F}, {3}},
      {"without temperature", {.top_p = 0.7F}, {3, 0}},
      // Square roots: 1, 0.71, 0.55, 0.37, 0.24 of the first.
      {"temperature before min-p", {.temperature = 2, .min_p = 0.3F}, {3, 0, 4, 1}},
      {"top-p and min-p", {.top_p = 0.8F, .min_p = 0.4F}, {3, 0}},
  };
  for (const auto& row : table) {
    std::set<int> seen;
    for (int position = 0; position < 4000; ++position) {
      seen.insert(sampled(logits_of_probabilities(), row.sampling, position));
    }
    EXPECT_EQ(seen, row.left) << row.name;
  }
}

TEST(SamplerTest, TiesAtTheEdgeGoToTheLowerId) {
  for (int position = 0; position < 200; ++position) {
    EXPECT_EQ(sampled({1, 2, 2, 2}, {.top_k = 1}, position), 1);
    EXPECT_EQ(sampled({1, 2, 2, 2}, {.top_p = 0.01F}, position), 1);
    EXPECT_NE(sampled({0, 0, 0}, {.top_k = 2}, position), 2);
  }
}

// Pearson's statistic of 20 000 positions has four degrees of freedom: above 27.9 once in 80 000 times.
TEST(SamplerTest, TokensComeAsOftenAsTheirProbabilitySays) {
  constexpr int positions = 20000;
  for (const float temperature : {1.0F, 0.7F, 3.0F}) {
    std::vector<double> expected;
    double sum = 0;
    for (const double p : probabilities) sum += expected.emplace_back(std::pow(p, 1 / temperature));
    for (const std::uint64_t seed : {0ull, 1ull, 42ull, ~0ull}) {
      std::vector<int> counts(probabilities.size());
      for (int position = 0; position < positions; ++position) {
        ++counts[sampled(logits_of_probabilities(), {.temperature = temperature, .seed = seed}, position)];
      }
      double statistic = 0;
      for (std::size_t id = 0; id < counts.size(); ++id) {
        const double wanted = positions * expected[id] / sum;
        statistic += (counts[id] - wanted) * (counts[id] - wanted) / wanted;
      }
      EXPECT_LT(statistic, 27.9) << "temperature " << temperature << ", seed " << seed;
    }
  }
}

// The nucleus keeps the proportions of what is left.
TEST(SamplerTest, WhatIsLeftKeepsItsProportions) {
  int first = 0;
  constexpr int positions = 20000;
  for (int position = 0; position < positions; ++position) {
    first += sampled(logits_of_probabilities(), {.top_k = 2}, position) == 3;
  }
  // 2/3, with a deviation of 0.0033.
  EXPECT_NEAR(static_cast<double>(first) / positions, 2.0 / 3, 5 * 0.0033);
}

// Prompt 0, 1; answer 1, 2, 2.
TEST(SamplerTest, PenaltiesFollowTheirFormulas) {
  const std::vector<float> logits{2, -2, 3, 1, -1};
  const struct {
    const char* name;
    Sampling sampling;
    std::vector<float> penalized;
  } table[] = {
      {"none", {}, logits},
      {"repetition: divides what is above 0, multiplies what is below",
       {.repetition_penalty = 2},
       {1, -4, 1.5, 1, -1}},
      {"repetition below 1 rewards", {.repetition_penalty = 0.5}, {4, -1, 6, 1, -1}},
      {"frequency: each time, in the answer alone", {.frequency_penalty = 0.5}, {2, -2.5, 2, 1, -1}},
      {"presence: once", {.presence_penalty = 1}, {2, -3, 2, 1, -1}},
      {"negative", {.frequency_penalty = -1, .presence_penalty = -0.5}, {2, -0.5, 5.5, 1, -1}},
      {"all",
       {.repetition_penalty = 2, .frequency_penalty = 0.5, .presence_penalty = 1},
       {1, -5.5, -0.5, 1, -1}},
  };
  for (const auto& row : table) {
    for (const float temperature : {0.0F, 1.0F}) {
      auto penalized = logits;
      Sampling sampling = row.sampling;
      sampling.temperature = temperature;
      sample(penalized, sampling, std::vector{0, 1}, std::vector{1, 2, 2}, 5);
      EXPECT_EQ(penalized, row.penalized) << row.name << ", temperature " << temperature;
    }
  }
}

TEST(SamplerTest, PenaltiesChangeTheGreedyChoice) {
  std::vector<float> logits{5, 4.9F, 1};
  EXPECT_EQ(sample(logits, {.temperature = 0, .presence_penalty = 0.5}, {}, std::vector{0}, 1), 1);
}

TEST(SamplerTest, LogitsThatAreNoNumbersAreAnError) {
  for (const float bad : {std::nanf(""), infinity, -infinity}) {
    for (const float temperature : {0.0F, 1.0F}) {
      for (std::size_t place = 0; place < 3; ++place) {
        std::vector<float> logits{1, 2, 3};
        logits[place] = bad;
        EXPECT_THROW(sampled(logits, {.temperature = temperature}), std::runtime_error)
            << bad << " at " << place;
      }
    }
  }
}

// A quotient that overflows float is still the largest.
TEST(SamplerTest, ExtremeSettingsStillPreferTheLikeliest) {
  const struct {
    const char* name;
    Sampling sampling;
  } table[] = {
      {"temperature 1e-40", {.temperature = 1e-40F}},
      {"temperature 1e-6", {.temperature = 1e-6F}},
      {"repetition penalty 1e-40", {.repetition_penalty = 1e-40F}},
  };
  for (const auto& row : table) {
    for (int position = 0; position < 100; ++position) {
      std::vector<float> logits{1, -30, 20, 3};
      EXPECT_EQ(sample(logits, row.sampling, std::vector{2}, {}, position), 2) << row.name;
    }
  }
  std::set<int> seen;
  for (int position = 0; position < 4000; ++position)
    seen.insert(sampled({1, 2, 3}, {.temperature = 100}, position));
  EXPECT_EQ(seen, (std::set{0, 1, 2}));
}

TEST(SamplerTest, TheSameSeedAndPositionGiveTheSameToken) {
  std::vector<float> flat(1000, 0);
  std::vector<int> first, again, other_seed;
  for (int position = 0; position < 200; ++position) {
    first.push_back(sampled(flat, {.seed = 7}, position));
    other_seed.push_back(sampled(flat, {.seed = 8}, position));
  }
  for (int position = 199; position >= 0; --position) {  // in any order
    again.insert(again.begin(), sampled(flat, {.seed = 7}, position));
  }
  EXPECT_EQ(first, again);
  int same = 0;
  for (int position = 0; position < 200; ++position) same += first[position] == other_seed[position];
  EXPECT_LT(same, 5);                                                 // 0.2 by chance
  EXPECT_GT(std::set<int>(first.begin(), first.end()).size(), 150u);  // 181 by chance
}

TEST(SamplerTest, NoiseIsUniform) {
  std::vector<int> buckets(16);
  double product = 0;
  double last = 0.5;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    for (std::uint64_t position = 0; position < 1000; ++position) {
      const double noise = uniform_noise(seed, position);
      ASSERT_GE(noise, 0);
      ASSERT_LT(noise, 1);
      ++buckets[static_cast<int>(noise * 16)];
      product += (noise - 0.5) * (last - 0.5);
      last = noise;
    }
  }
  for (const int count : buckets) EXPECT_NEAR(count, 6250, 5 * 77);        // deviation √(6250·15/16)
  EXPECT_NEAR(product / 100000, 0, 5 * (1.0 / 12) / std::sqrt(100000.0));  // no echo of the one before
  EXPECT_NE(uniform_noise(1, 2), uniform_noise(2, 1));
  EXPECT_NE(uniform_noise(0, 0), 0);
}

}  // namespace
}  // namespace tandem::engine
