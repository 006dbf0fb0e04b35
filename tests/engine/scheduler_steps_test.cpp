#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "base/limits.h"
#include "engine/scheduler.h"
#include "engine/scheduler_harness.h"

namespace tandem::engine {
namespace {

// All rows of a prompt that is long enough, whatever is asked of it, and no row of an answer.
TEST(SchedulerTest, LongPromptsAreExpandedFromTheirFirstRowToTheirLast) {
  Harness harness({.vocabulary = vocabulary, .context = context, .expanded_from = 100});
  const std::map<int, int> prompts{{0, 99}, {1, 100}, {2, 1300}, {3, 99}, {4, 300}};  // by slot
  for (const auto& [slot, size] : prompts) {
    const auto ids = some_ids(size);
    if (slot < 3) {
      harness.submit(greedy(slot, ids, 4));
    } else {
      harness.submit(ScoreRequest{static_cast<std::uint64_t>(slot), ids, true});
    }
  }
  std::map<int, int> held;
  while (!harness.scheduler.idle()) {
    harness.step();
    for (const auto& step : harness.plan.sequences) {
      const int prompt = prompts.at(step.slot);
      EXPECT_EQ(step.expanded, prompt >= 100 && held[step.slot] < prompt) << step.slot;
      held[step.slot] += static_cast<int>(step.tokens.size());
    }
  }
  EXPECT_EQ(held.size(), prompts.size());
}

TEST(SchedulerTest, StagesHaveSeveralStepsUnderWayAndAnswerAsOne) {
  for (const int stages : {2, 3, 5}) {
    Pipeline pipeline(stages);
    const auto prompt = some_ids(5 * limits::stage_chunk_tokens + 3);
    pipeline.harness.submit(greedy(1, prompt, 7));
    pipeline.harness.submit(greedy(2, {4, 5}, 40));
    pipeline.harness.submit(ScoreRequest{3, prompt, false, {1, limits::score_chunk_tokens + 9}});
    for (std::uint64_t id = 4; id < 9; ++id) pipeline.harness.submit(greedy(id, some_ids(id), 20));
    pipeline.run_all();
    EXPECT_EQ(pipeline.harness.tokens(1), greedy_answer(prompt, 7));
    EXPECT_EQ(pipeline.harness.tokens(2), greedy_answer({4, 5}, 40));
    for (std::uint64_t id = 4; id < 9; ++id)
      EXPECT_EQ(pipeline.harness.tokens(id), greedy_answer(some_ids(id), 20)) << id;
    EXPECT_EQ(pipeline.harness.done(3).reason, FinishReason::end);
    EXPECT_EQ(pipeline.most_under_way, static_cast<std::size_t>(stages));
    EXPECT_EQ(pipeline.harness.runner.slots_held(), 0u);
  }
}

TEST(SchedulerTest, APromptsChunksFillTheStages) {
  Pipeline pipeline(3);
  pipeline.harness.submit(greedy(1, some_ids(4 * limits::stage_chunk_tokens), 1));
  for (const std::size_t under_way : {1, 2, 3}) {
    pipeline.move();
    EXPECT_EQ(pipeline.under_way.size(), under_way);
    EXPECT_EQ(pipeline.under_way.back().first.sequences.front().tokens.size(),
              static_cast<std::size_t>(limits::stage_chunk_tokens));
  }
}

// Larger chunks where each of them makes anew what it sees, but enough to fill the stages.
TEST(SchedulerTest, StagesGetLargerChunksOfLongExpandedPrompts) {
  for (const auto& [tokens, chunk] : std::vector<std::pair<int, int>>{
           {99, 99}, {400, limits::stage_chunk_tokens}, {1600, 200}, {1999, 249}}) {
    Scheduler scheduler({.vocabulary = vocabulary, .context = context, .stages = 2, .expanded_from = 100});
    scheduler.submit(greedy(1, some_ids(tokens), 1), 0);
    const auto plan = scheduler.next(0);
    EXPECT_EQ(plan.sequences.front().tokens.size(), static_cast<std::size_t>(chunk));
    EXPECT_EQ(plan.sequences.front().expanded, tokens >= 100);
  }
}

TEST(SchedulerTest, AnswersAreSharedOutOverTheStepsUnderWay) {
  for (const auto& [answers, stages, sizes] : std::vector<std::tuple<int, int, std::vector<std::size_t>>>{
           {1, 2, {1}}, {4, 2, {2, 2}}, {5, 2, {3, 2}}, {5, 3, {2, 2, 1}}, {2, 4, {1, 1}}}) {
    Pipeline pipeline(stages);
    for (int i = 0; i < answers; ++i) pipeline.harness.submit(greedy(i, {1, i}, 100));
    while (pipeline.under_way.empty() || pipeline.harness.tokens(answers - 1).empty()) pipeline.move();
    for (int i = 0; i < 40; ++i) pipeline.move();  // until it goes round
    pipeline.depth = 0;
    while (!pipeline.under_way.empty()) pipeline.move();
    pipeline.depth = stages;
    for (const std::size_t size : sizes) {
      pipeline.move();
      EXPECT_EQ(pipeline.under_way.back().first.sequences.size(), size) << answers << " over " << stages;
    }
  }
}

TEST(SchedulerTest, ARequestCancelledWithStepsUnderWayEndsOnce) {
  for (int moves = 1; moves < 12; ++moves) {
    Pipeline pipeline(3);
    pipeline.harness.submit(greedy(1, some_ids(3 * limits::stage_chunk_tokens), 9));
    pipeline.harness.submit(ScoreRequest{2, some_ids(5)});
    for (int i = 0; i < moves; ++i) pipeline.move();
    EXPECT_EQ(pipeline.harness.submit(Cancel{1}).size(), 1u);
    pipeline.run_all();
    EXPECT_EQ(pipeline.harness.done(1).reason, FinishReason::cancelled);
    EXPECT_EQ(pipeline.harness.done(2).reason, FinishReason::end);
    EXPECT_EQ(pipeline.harness.runner.slots_held(), 0u);
  }
}

// Of requests that come and go at any time: each answers as it would alone, and ends once.
TEST(SchedulerTest, StepsThatOverlapAnswerAsOthersDo) {
  auto sampled = greedy(6, {10, 11}, 9);
  sampled.sampling.temperature = 1;
  Harness alone;
  alone.submit(sampled);
  alone.run_all();
  for (int cancelled_after = 0; cancelled_after < 40; ++cancelled_after) {
    SCOPED_TRACE(cancelled_after);
    Pipeline pipeline;
    pipeline.harness.submit(greedy(1, some_ids(limits::prefill_chunk_tokens + 3), 7));
    pipeline.harness.submit(greedy(2, {4, 5}, 300));  // past a block of the cache
    pipeline.harness.submit(greedy(3, {6}, 1));
    auto ends = greedy(4, {7, 8}, 30);
    const auto whole = greedy_answer({7, 8}, 30);
    ends.end_ids = {whole[12]};
    const auto end = std::find(whole.begin(), whole.end(), whole[12]);
    pipeline.harness.submit(ends);
    pipeline.harness.submit(greedy(5, {9}, 200));
    for (int i = 0; i < cancelled_after; ++i) pipeline.move();
    pipeline.harness.submit(Cancel{5});
    pipeline.harness.submit(sampled);
    pipeline.harness.submit(ScoreRequest{7, some_ids(20), true});
    pipeline.run_all();
    EXPECT_EQ(pipeline.harness.tokens(1), greedy_answer(some_ids(limits::prefill_chunk_tokens + 3), 7));
    EXPECT_EQ(pipeline.harness.tokens(2), greedy_answer({4, 5}, 300));
    EXPECT_EQ(pipeline.harness.tokens(3), greedy_answer({6}, 1));
    EXPECT_EQ(pipeline.harness.tokens(4), std::vector<int>(whole.begin(), end));
    EXPECT_EQ(pipeline.harness.done(5).reason, FinishReason::cancelled);
    EXPECT_EQ(pipeline.harness.tokens(6), alone.tokens(6));
    EXPECT_EQ(pipeline.harness.done(7).reason, FinishReason::end);
    EXPECT_EQ(pipeline.most_under_way, 2u);
    EXPECT_EQ(pipeline.harness.runner.slots_held(), 0u);
  }
}

// Two that come at different times go together from then on.
TEST(SchedulerTest, SampledAnswersShareTheirStepsWhereStepsOverlap) {
  Pipeline pipeline;
  for (int id = 1; id <= 2; ++id) {
    auto request = greedy(id, {id, 2}, 30);
    request.sampling.temperature = 1;
    pipeline.harness.submit(request);
    for (int i = 0; i < 5; ++i) pipeline.move();
  }
  for (int i = 0; i < 10; ++i) {
    pipeline.move();
    EXPECT_LE(pipeline.under_way.size(), 1u);
    if (!pipeline.under_way.empty()) {
      EXPECT_EQ(pipeline.under_way.back().first.sequences.size(), 2u);
    }
  }
}

TEST(SchedulerTest, AnAnswerGoesAheadWhereItNeedsTheLikeliestTokenAlone) {
  const auto goes = [](const GenerateRequest& request) {
    Pipeline pipeline;
    pipeline.harness.submit(request);
    pipeline.move();
    return !pipeline.harness.scheduler.ahead().empty();
  };
  auto request = greedy(1, {1, 2}, 2);
  EXPECT_TRUE(goes(request));
  request.max_tokens = 1;
  EXPECT_FALSE(goes(request));
  request.max_tokens = 2;
  request.sampling.repetition_penalty = 1.1F;
  EXPECT_FALSE(goes(request));
  request.sampling = {.temperature = 0.5F};
  EXPECT_FALSE(goes(request));
  EXPECT_FALSE(goes(greedy(1, some_ids(cache_block_tokens), 2)));  // its cache would grow
  EXPECT_TRUE(goes(greedy(1, some_ids(cache_block_tokens + 1), 2)));
  EXPECT_FALSE(goes(greedy(1, some_ids(limits::prefill_chunk_tokens + 1), 2)));  // its prompt goes on
}

TEST(SchedulerTest, OfEqualLogitsTheTokenIsTheOneThatTheNextStepWasGiven) {
  Scheduler scheduler({vocabulary, context});
  scheduler.submit(greedy(1, {1, 2}, 3), 0);
  const auto plan = scheduler.next(0);
  std::vector<float> rows(vocabulary, 0);
  rows[4] = rows[9] = 7;
  const auto events = scheduler.finish(plan, {rows, {9}}, 0);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(std::get<TokenEvent>(events[0]).token, 9);
}

}  // namespace
}  // namespace tandem::engine
