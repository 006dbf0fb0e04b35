#include "engine/step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "kernels/products.h"
#include "models/families.h"
#include "parallel/ranks.h"
#include "parallel/tcp_group.h"
#include "weights/checkpoint.h"

namespace tandem::engine {
namespace {

using Words = std::vector<std::int32_t>;

std::vector<std::uint8_t> bytes_of(const Words& words) {
  std::vector<std::uint8_t> bytes(words.size() * sizeof(std::int32_t));
  if (!words.empty()) std::memcpy(bytes.data(), words.data(), bytes.size());
  return bytes;
}

bool same(const StepPlan& a, const StepPlan& b) {
  const auto equal = [](const SequenceStep& x, const SequenceStep& y) {
    return x.slot == y.slot && x.tokens == y.tokens && x.rows == y.rows && x.expanded == y.expanded;
  };
  return a.released_slots == b.released_slots &&
         std::equal(a.sequences.begin(), a.sequences.end(), b.sequences.begin(), b.sequences.end(), equal);
}

const std::vector<StepPlan>& plans() {
  static const std::vector<StepPlan> table{
      {},
      {{3}, {}},
      {{}, {{0, {5}, {0}}}},
      {{}, {{7, {1, 2, 3}, {}}}},
      {{1, 2, INT_MAX}, {{4, {0, INT_MAX, 9}, {0, 2}}, {5, {8}, {0}}, {6, {1, 1}, {1}}}},
      {{}, {{0, std::vector<int>(512, 77), {511}, true}}},
  };
  return table;
}

TEST(StepPlanTest, DecodeGivesWhatWasEncoded) {
  for (const auto& plan : plans()) EXPECT_TRUE(same(decode(encode(plan)), plan));
}

TEST(StepPlanTest, EveryTruncationIsAnError) {
  for (const auto& plan : plans()) {
    const auto bytes = encode(plan);
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      EXPECT_THROW(decode(std::span(bytes).first(size)), ClusterError) << size << " of " << bytes.size();
    }
  }
}

TEST(StepPlanTest, WhatIsNoPlanIsAClusterError) {
  const struct {
    const char* name;
    Words words;
  } table[] = {
      {"nothing", {}},
      {"released: more than there are", {2, 1}},
      {"released: two thousand million", {INT_MAX, 1, 2}},
      {"released: a negative number", {-1, 0}},
      {"sequences: more than there are", {0, 2, 4, 1, 9, 0, 0}},
      {"sequences: two thousand million", {0, INT_MAX}},
      {"sequences: a negative number", {0, -1}},
      {"tokens: two thousand million", {0, 1, 4, INT_MAX, 9, 0, 0}},
      {"tokens: a negative number", {0, 1, 4, INT_MIN, 0, 0}},
      {"tokens: none", {0, 1, 4, 0, 0, 0}},
      {"rows: more than there are", {0, 1, 4, 1, 9, 2, 0}},
      {"rows: past the tokens", {0, 1, 4, 1, 9, 1, 1, 0}},
      {"rows: negative", {0, 1, 4, 1, 9, 1, -1, 0}},
      {"rows: twice the same", {0, 1, 4, 2, 9, 9, 2, 0, 0, 0}},
      {"rows: descending", {0, 1, 4, 2, 9, 9, 2, 1, 0, 0}},
      {"form: neither of the two", {0, 1, 4, 1, 9, 0, 2}},
      {"words after the end", {0, 0, 0}},
  };
  for (const auto& row : table) EXPECT_THROW(decode(bytes_of(row.words)), ClusterError) << row.name;
}

// Random words, mostly small so that some get far, and plans with one byte changed: a plan that makes sense
// or a ClusterError, and never more memory than the bytes that came.
TEST(StepPlanTest, RandomBytesNeverGiveNonsense) {
  std::mt19937 random(1);
  const auto below = [&](int bound) { return static_cast<int>(random() % static_cast<unsigned>(bound)); };
  int decoded = 0;
  const auto attempt = [&](const std::vector<std::uint8_t>& bytes) {
    try {
      const StepPlan plan = decode(bytes);
      ++decoded;
      ASSERT_EQ(encode(plan), bytes);
      for (const auto& sequence : plan.sequences) {
        ASSERT_FALSE(sequence.tokens.empty());
        for (const int row : sequence.rows) ASSERT_LT(row, static_cast<int>(sequence.tokens.size()));
      }
    } catch (const ClusterError&) {
    }
  };
  for (int round = 0; round < 100'000; ++round) {
    Words words(below(12));
    for (auto& word : words) word = below(10) == 0 ? static_cast<std::int32_t>(random()) : below(3);
    auto bytes = bytes_of(words);
    if (below(10) == 0) bytes.resize(bytes.size() + below(4));
    attempt(bytes);
  }
  EXPECT_GT(decoded, 500);
  for (int round = 0; round < 20'000; ++round) {
    auto bytes = encode(plans()[below(5)]);
    bytes[below(static_cast<int>(bytes.size()))] = static_cast<std::uint8_t>(random());
    attempt(bytes);
  }
}

// All of a model of this repository, or what one stage has of it.
class LocalModel {
 public:
  explicit LocalModel(const char* folder = "tests/golden/tiny-llama-mlx-4bit")
      : folder_(std::filesystem::path(TANDEM_SOURCE_DIR) / folder) {
    mlx::core::set_default_device(mlx::core::Device::cpu);
  }

  models::Decoder decoder(parallel::Range layers) {
    const auto shard = parallel::shard_of(config.sizes, {1}, 0);
    const weights::ShardedWeights weights(checkpoint_, models::shard_rules(config, checkpoint_, layers),
                                          config.formats, shard, layers.begin, layers.end);
    return models::make_decoder(config, shard, weights, layers);
  }
  StepRunner runner() { return {decoder({0, config.layers}), {parallel::single_rank_group()}}; }
  StepRunner overlapping_runner() {
    const auto group = parallel::single_rank_group();
    const parallel::Plan alone{{{0, config.layers, {{}}}}};
    return {decoder({0, config.layers}),    {group},          group, alone.place(0),
            kernels::KeyValueFormat::plain, /*overlaps=*/true};
  }

 private:
  std::filesystem::path folder_;

 public:
  models::ModelConfig config = models::load_config(folder_);

 private:
  weights::Checkpoint checkpoint_{folder_};
};

std::vector<float> run(StepRunner& runner, const StepPlan& plan) {
  runner.start(plan);
  return runner.finish().logits;
}

class StepRunnerTest : public testing::Test {
 protected:
  void TearDown() override { kernels::use_activations(kernels::Activations::automatic); }

  static StepRunner dense_runner() { return LocalModel().runner(); }

  // Products sum in an order that does not depend on the rows with them, so that steps differ in attention
  // alone: sums of 32 and of the row's positions, 6 layers, logits up to 20.
  static void expect_close(std::span<const float> a, std::span<const float> b) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-3) << i;
  }
  static constexpr std::size_t vocabulary = 1024;
};

TEST_F(StepRunnerTest, ChunksAndNeighboursDoNotChangeLogits) {
  StepRunner runner = dense_runner();
  const std::vector<int> ids{5, 100, 7, 300, 42, 900, 8}, other{9, 9, 10};
  const auto whole = run(runner, {{}, {{0, ids, {0, 1, 2, 3, 4, 5, 6}}}});
  ASSERT_EQ(whole.size(), ids.size() * vocabulary);
  const auto row = [&](std::size_t i) { return std::span(whole).subspan(i * vocabulary, vocabulary); };
  const auto alone = run(runner, {{0}, {{1, other, {2}}}});

  // The same ids in three steps, beside another sequence; wanted rows come in the order of the plan.
  EXPECT_TRUE(run(runner, {{1}, {{2, {5, 100, 7}, {}}}}).empty());
  const auto mixed = run(runner, {{}, {{2, {300, 42}, {0, 1}}, {3, other, {2}}}});
  ASSERT_EQ(mixed.size(), 3 * vocabulary);
  expect_close(std::span(mixed).first(vocabulary), row(3));
  expect_close(std::span(mixed).subspan(vocabulary, vocabulary), row(4));
  expect_close(std::span(mixed).subspan(2 * vocabulary), alone);
  const auto last = run(runner, {{}, {{2, {900, 8}, {1}}}});
  expect_close(last, row(6));
}

TEST_F(StepRunnerTest, AReleasedSlotIsFreedAndStartsEmpty) {
  StepRunner runner = dense_runner();
  EXPECT_EQ(runner.cache_bytes(), 0u);
  const auto first = run(runner, {{}, {{0, {5, 6}, {1}}}});
  // 6 layers of keys and values, 4 heads of 32 floats, 256 positions.
  EXPECT_EQ(runner.cache_bytes(), 6u * 2 * 4 * 32 * 4 * 256);
  const auto second = run(runner, {{}, {{1, {5, 6}, {1}}}});
  EXPECT_EQ(runner.cache_bytes(), 2u * 6 * 2 * 4 * 32 * 4 * 256);
  EXPECT_EQ(first, second);
  EXPECT_TRUE(run(runner, {{0, 1}, {}}).empty());
  EXPECT_EQ(runner.cache_bytes(), 0u);
  EXPECT_EQ(run(runner, {{}, {{0, {5, 6}, {1}}}}), first);
  EXPECT_EQ(run(runner, {{0, 17}, {{0, {5, 6}, {1}}}}), first);  // dropped first; 17 was never there
}

// Of DeepSeek's latent attention: a prompt's rows in one form beside an answer's in the other have the bits
// that they have alone, however the prompt is cut.
TEST_F(StepRunnerTest, TwoFormsOfAttentionShareAStep) {
  LocalModel model("tests/golden/deepseek-v3-yarn");
  StepRunner runner = model.runner();
  std::vector<int> prompt;
  for (int i = 0; i < 60; ++i) prompt.push_back((i * 37 + i * i) % 160);
  const std::vector<int> other{9, 8, 7}, all{0, 1, 2};
  const auto part = [&](int first, int end) {
    return std::vector<int>(prompt.begin() + first, prompt.begin() + end);
  };
  kernels::use_activations(kernels::Activations::float32);  // rounded, the forms differ by that
  const auto expanded = run(runner, {{}, {{0, prompt, {59}, true}}});
  const auto absorbed = run(runner, {{}, {{1, prompt, {59}}}});
  const auto alone = run(runner, {{}, {{2, other, all}}});
  for (std::size_t i = 0; i < expanded.size(); ++i)
    ASSERT_NEAR(expanded[i], absorbed[i], 1.3e-4) << i;  // tests/cluster/golden_test.cpp
  EXPECT_NE(expanded, absorbed);

  run(runner, {{}, {{3, part(0, 7), {}, true}, {4, {9}, {}}, {5, part(0, 40), {}, true}}});
  auto mixed =
      run(runner, {{}, {{4, {8, 7}, {0, 1}}, {3, part(7, 60), {52}, true}, {5, part(40, 60), {19}, true}}});
  const auto next = [&](std::size_t rows) {
    const std::vector<float> taken(mixed.begin(), mixed.begin() + static_cast<std::ptrdiff_t>(rows * 160));
    mixed.erase(mixed.begin(), mixed.begin() + static_cast<std::ptrdiff_t>(rows * 160));
    return taken;
  };
  EXPECT_EQ(next(2), std::vector<float>(alone.begin() + 160, alone.end()));
  EXPECT_EQ(next(1), expanded);
  EXPECT_EQ(mixed, expanded);
  // An answer continues either alike.
  const auto answer = run(runner, {{}, {{0, {5}, {0}}}});
  EXPECT_EQ(run(runner, {{}, {{3, {5}, {0}}}}), answer);
}

// Steps of three sequences, with and without wanted rows, and one that only drops a cache.
std::vector<StepPlan> mixed_plans() {
  const auto ids = [](int size, int seed) {
    std::vector<int> ids;
    for (int i = 0; i < size; ++i) ids.push_back((i * 31 + seed * 77 + i * i) % 1024);
    return ids;
  };
  return {{{}, {{0, ids(40, 1), {}}}},
          {{}, {{1, ids(30, 2), {29}}, {0, ids(9, 3), {8}}}},
          {{}, {{2, ids(12, 4), {0, 5, 11}}}},
          {{}, {{0, {5}, {0}}}},
          {{1}, {}},
          {{}, {{2, {7}, {0}}}},
          {{}, {{1, ids(20, 5), {}}}},
          {{0}, {{2, {8, 9}, {1}}, {1, {4}, {0}}}}};
}

TEST_F(StepRunnerTest, StagesGiveTheBitsOfAllLayersWithAnyNumberOfStepsUnderWay) {
  LocalModel model;
  const auto plans = mixed_plans();
  std::vector<std::vector<float>> expected;
  StepRunner whole = model.runner();
  for (const auto& plan : plans) expected.push_back(run(whole, plan));
  for (const int stages : {2, 3, 6}) {
    const auto ranges = parallel::split_layers(std::vector<double>(6, 1), stages);
    parallel::Plan plan;
    for (const auto& range : ranges) plan.stages.push_back({range.begin, range.end, {{}}});
    for (const std::size_t most_under_way : {1, 2, 100}) {
      SCOPED_TRACE(std::to_string(stages) + " stages, steps under way: " + std::to_string(most_under_way));
      const parallel::MeetingPoint meeting(stages);
      const auto errors = parallel::run_ranks(stages, [&](int rank) {
        StepRunner runner(model.decoder(ranges[rank]), {parallel::single_rank_group()}, meeting.group(rank),
                          plan.place(rank));
        std::size_t finished = 0;
        for (std::size_t i = 0; i < plans.size(); ++i) {
          runner.start(plans[i]);
          if (rank == 0 && i + 1 - finished == most_under_way) {
            EXPECT_EQ(runner.finish().logits, expected[finished++]);
          }
        }
        while (rank == 0 && finished < plans.size()) EXPECT_EQ(runner.finish().logits, expected[finished++]);
      });
      EXPECT_EQ(errors, std::vector<std::string>(stages));
    }
  }
}

TEST_F(StepRunnerTest, StepsThatOverlapGiveTheBitsOfThoseThatDoNot) {
  LocalModel model;
  const auto plans = mixed_plans();
  StepRunner waits = model.runner(), overlaps = model.overlapping_runner();
  std::size_t finished = 0;
  std::vector<std::vector<float>> expected;
  for (const auto& plan : plans) expected.push_back(run(waits, plan));
  for (std::size_t i = 0; i < plans.size(); ++i) {
    overlaps.start(plans[i]);
    if (i >= 2) {
      EXPECT_EQ(overlaps.finish().logits, expected[finished++]);
    }
  }
  while (finished < plans.size()) EXPECT_EQ(overlaps.finish().logits, expected[finished++]);
  EXPECT_FALSE(overlaps.can_finish());
}

// The next token of two answers, beside a prompt's, is the likeliest of a step that is not finished yet.
TEST_F(StepRunnerTest, AStepTakesTheLikeliestTokensOfTheOneBefore) {
  LocalModel model;
  StepRunner waits = model.runner(), overlaps = model.overlapping_runner();
  const StepPlan first{{}, {{0, {5, 100, 7}, {2}}, {1, {42, 900}, {0, 1}}}};
  overlaps.start(first);
  overlaps.start({{}, {{1, {likeliest_token}, {0}}, {2, {9, 10, 11}, {2}}, {0, {likeliest_token}, {0}}}});
  overlaps.start({{}, {{0, {likeliest_token}, {0}}}});
  const auto likeliest = [&](const std::vector<float>& logits, std::size_t row) {
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(row * vocabulary);
    return static_cast<int>(std::max_element(begin, begin + vocabulary) - begin);
  };
  const auto one = run(waits, first);
  const StepResult result = overlaps.finish();
  EXPECT_EQ(result.logits, one);
  EXPECT_EQ(result.likeliest, (std::vector<int>{likeliest(one, 0), likeliest(one, 1), likeliest(one, 2)}));
  const auto two =
      run(waits, {{}, {{1, {likeliest(one, 2)}, {0}}, {2, {9, 10, 11}, {2}}, {0, {likeliest(one, 0)}, {0}}}});
  EXPECT_EQ(overlaps.finish().logits, two);
  EXPECT_EQ(overlaps.finish().logits, run(waits, {{}, {{0, {likeliest(two, 2)}, {0}}}}));
  EXPECT_THROW(overlaps.start({{}, {{7, {likeliest_token}, {0}}}}), ClusterError);
}

// More than sockets hold on their way: the first stage has to take logits off the last, which could not read
// on otherwise.
TEST_F(StepRunnerTest, LogitsAreTakenInWhileRowsGoOut) {
  LocalModel model;
  const parallel::Plan plan = {{{0, 3, {{}}}, {3, 6, {{}}}}};
  std::vector<int> rows(256);
  for (int i = 0; i < 256; ++i) rows[i] = i;
  const parallel::MeetingPoint meeting(2);
  const auto errors = parallel::run_ranks(2, [&](int rank) {
    StepRunner runner(model.decoder({3 * rank, 3 * rank + 3}), {parallel::single_rank_group()},
                      meeting.group(rank), plan.place(rank));
    constexpr int steps = 48;
    for (int step = 0; step < steps; ++step)
      runner.start({step > 0 ? std::vector<int>{step - 1} : std::vector<int>{}, {{step, rows, rows}}});
    for (int step = 0; rank == 0 && step < steps; ++step)
      EXPECT_EQ(runner.finish().logits.size(), rows.size() * vocabulary);
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

}  // namespace
}  // namespace tandem::engine
