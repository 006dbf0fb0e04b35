#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/limits.h"
#include "engine/scheduler.h"
#include "engine/scheduler_harness.h"

namespace tandem::engine {
namespace {

TEST(SchedulerTest, AnswersEndAtMaxTokensOrWhereTheContextDoes) {
  const struct {
    int prompt, max_tokens, context, generated;
  } table[] = {{3, 4, 20, 4},  {3, 1, 20, 1},  {3, 17, 20, 17}, {3, 18, 20, 17},
               {3, 0, 20, 17}, {19, 0, 20, 1}, {19, 5, 20, 1},  {3, -1, 20, 17}};
  for (const auto& row : table) {
    Harness harness({vocabulary, row.context});
    harness.submit(greedy(1, some_ids(row.prompt), row.max_tokens));
    harness.run_all();
    const DoneEvent done = harness.done(1);
    EXPECT_EQ(done.reason, FinishReason::length);
    EXPECT_EQ(done.prompt_tokens, row.prompt);
    EXPECT_EQ(done.generated_tokens, row.generated) << row.prompt << " " << row.max_tokens;
    EXPECT_EQ(harness.tokens(1), greedy_answer(some_ids(row.prompt), row.generated));
  }
}

TEST(SchedulerTest, AnAnswerEndsBeforeAnEndId) {
  const std::vector<int> prompt{1, 2, 3};
  const auto answer = greedy_answer(prompt, 10);
  for (std::size_t end = 0; end < answer.size(); ++end) {
    Harness harness;
    GenerateRequest request = greedy(1, prompt, 10);
    request.end_ids = {vocabulary + 5, answer[end]};  // one that never comes
    harness.submit(request);
    harness.run_all();
    const auto first = std::find(answer.begin(), answer.end(), answer[end]) - answer.begin();
    EXPECT_EQ(harness.tokens(1), std::vector<int>(answer.begin(), answer.begin() + first));
    EXPECT_EQ(harness.done(1).reason, FinishReason::end);
    EXPECT_EQ(harness.done(1).generated_tokens, first);
  }
}

// The noise is of the position in the whole sequence, so that a longer prompt that ends alike continues
// alike.
TEST(SchedulerTest, SampledAnswersDependOnSeedAlone) {
  const auto answer = [](std::uint64_t id, std::uint64_t seed, std::vector<int> prompt) {
    Harness harness;
    harness.submit(GenerateRequest{id, std::move(prompt), 12, {}, {.seed = seed}});
    harness.run_all();
    return harness.tokens(id);
  };
  const auto first = answer(1, 5, {1, 2});
  EXPECT_EQ(answer(9, 5, {1, 2}), first);
  EXPECT_NE(answer(1, 6, {1, 2}), first);
  auto longer = std::vector<int>{1, 2};
  longer.insert(longer.end(), first.begin(), first.begin() + 4);
  const auto rest = answer(1, 5, longer);
  EXPECT_EQ(std::vector<int>(rest.begin(), rest.begin() + 8),
            std::vector<int>(first.begin() + 4, first.end()));
}

TEST(SchedulerTest, ScoresAreTheLogitsAsked) {
  const int size = limits::score_chunk_tokens + 5;
  std::vector<int> all(size);
  for (int i = 0; i < size; ++i) all[i] = i;
  const struct {
    std::vector<int> asked, given;
  } table[] = {{{}, all},
               {{0}, {0}},
               {{size - 1}, {size - 1}},
               {{size - 2, 3, limits::score_chunk_tokens}, {3, limits::score_chunk_tokens, size - 2}},
               {{3, 3}, {3}}};
  const auto ids = some_ids(size);
  for (const auto& row : table) {
    Harness harness;
    harness.submit(ScoreRequest{1, ids, false, row.asked});
    harness.run_all();
    std::vector<int> given;
    for (const auto& event : harness.events) {
      if (const auto* logits = std::get_if<LogitsEvent>(&event)) {
        given.push_back(logits->position);
        EXPECT_EQ(logits->logits, logits_after(ids[logits->position], logits->position));
      }
    }
    EXPECT_EQ(given, row.given);
    EXPECT_EQ(harness.done(1).reason, FinishReason::end);
    EXPECT_EQ(harness.done(1).generated_tokens, 0);
  }
}

TEST(SchedulerTest, LikelihoodsAreThoseOfADirectSum) {
  for (const int size : {1, 2, limits::score_chunk_tokens, limits::score_chunk_tokens + 1, 300}) {
    const auto ids = some_ids(size);
    double expected = 0;
    for (int position = 0; position + 1 < size; ++position) {
      double sum = 0;
      for (const float x : logits_after(ids[position], position)) sum += std::exp(static_cast<double>(x));
      expected -= std::log(std::exp(logit(ids[position], position, ids[position + 1])) / sum);
    }
    Harness harness;
    harness.submit(ScoreRequest{1, ids, true});
    harness.run_all();
    ASSERT_EQ(harness.events.size(), 2u);
    const auto& nll = std::get<NllEvent>(harness.events[0]);
    EXPECT_EQ(nll.tokens, size - 1);
    EXPECT_NEAR(nll.sum_nll, expected, 1e-5 * size);  // float32 exponentials of logits up to 10
  }
}

TEST(SchedulerTest, ScoresThatAreNoNumbersAreAnError) {
  for (const bool nll : {false, true}) {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      Scheduler scheduler({vocabulary, context});
      scheduler.submit(ScoreRequest{1, {1, 2}, nll}, 0);
      const auto plan = scheduler.next(0);
      std::vector<float> rows(plan.sequences[0].rows.size() * vocabulary, 1);
      rows[3] = bad;
      EXPECT_THROW(scheduler.finish(plan, {rows, {}}, 0), std::runtime_error);
    }
  }
}

// Each step takes a second.
TEST(SchedulerTest, TimesAddUp) {
  Harness harness;
  harness.submit(greedy(1, some_ids(limits::prefill_chunk_tokens + 1), 4));
  harness.submit(greedy(2, {1}, 1));
  harness.run_all();
  const DoneEvent first = harness.done(1), second = harness.done(2);
  EXPECT_EQ(first.queued_s, 0);
  EXPECT_EQ(first.prefill_s, 2);
  EXPECT_EQ(first.decode_s, 3);
  EXPECT_EQ(second.queued_s, 1);  // the first chunk leaves no room for its prompt
  EXPECT_EQ(second.prefill_s, 1);
  EXPECT_EQ(second.decode_s, 0);
}

}  // namespace
}  // namespace tandem::engine
