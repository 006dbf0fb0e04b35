#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/limits.h"
#include "engine/scheduler_harness.h"

namespace tandem::engine {
namespace {

TEST(SchedulerTest, PromptsGoInChunks) {
  const int prefill = limits::prefill_chunk_tokens, score = limits::score_chunk_tokens;
  const struct {
    Request request;
    std::vector<int> chunks;
    std::vector<std::size_t> rows;
  } table[] = {
      {greedy(1, some_ids(1), 1), {1}, {1}},
      {greedy(1, some_ids(prefill), 1), {prefill}, {1}},
      {greedy(1, some_ids(prefill + 1), 1), {prefill, 1}, {0, 1}},
      {greedy(1, some_ids(2 * prefill + 9), 3), {prefill, prefill, 9, 1, 1}, {0, 0, 1, 1, 1}},
      {ScoreRequest{1, some_ids(1)}, {1}, {1}},
      {ScoreRequest{1, some_ids(score)}, {score}, {static_cast<std::size_t>(score)}},
      {ScoreRequest{1, some_ids(score + 2)}, {score, 2}, {static_cast<std::size_t>(score), 2}},
      {ScoreRequest{1, some_ids(score + 2), false, {score}}, {score, 2}, {0, 1}},
      {ScoreRequest{1, some_ids(score + 1), true}, {score, 1}, {static_cast<std::size_t>(score), 0}},
  };
  for (const auto& row : table) {
    Harness harness;
    EXPECT_TRUE(harness.submit(row.request).empty());
    std::vector<int> chunks, tokens;
    std::vector<std::size_t> rows;
    while (harness.order_of_ends().empty()) {
      harness.step();
      ASSERT_EQ(harness.plan.sequences.size(), 1u);
      const auto& step = harness.plan.sequences.front();
      chunks.push_back(static_cast<int>(step.tokens.size()));
      rows.push_back(step.rows.size());
      tokens.insert(tokens.end(), step.tokens.begin(), step.tokens.end());
    }
    EXPECT_EQ(chunks, row.chunks);
    EXPECT_EQ(rows, row.rows);
    // The prompt and then, each once, the tokens but the last.
    const auto answer = harness.tokens(1);
    auto expected = std::visit(
        [](const auto& request) {
          if constexpr (requires { request.prompt; }) return request.prompt;
          if constexpr (requires { request.ids; }) return request.ids;
          return std::vector<int>{};
        },
        row.request);
    if (!answer.empty()) expected.insert(expected.end(), answer.begin(), answer.end() - 1);
    EXPECT_EQ(tokens, expected);
  }
}

TEST(SchedulerTest, RequestsRunTogetherAndAnswerAsAlone) {
  Harness harness;
  harness.submit(greedy(7, {1, 2, 3}, 5));
  harness.submit(ScoreRequest{3, {4, 5}, true});
  harness.submit(greedy(5, {6}, 2));
  harness.run_all();
  EXPECT_EQ(harness.order_of_ends(), (std::vector<std::uint64_t>{3, 5, 7}));
  EXPECT_EQ(harness.tokens(7), greedy_answer({1, 2, 3}, 5));
  EXPECT_EQ(harness.tokens(5), greedy_answer({6}, 2));
  EXPECT_EQ(harness.runner.slots_held(), 0u);
  EXPECT_EQ(harness.runner.slots_released(), 3u);
  // Nothing left: an empty step.
  EXPECT_TRUE(harness.scheduler.idle());
  EXPECT_TRUE(harness.step().empty());
  EXPECT_TRUE(harness.plan.sequences.empty() && harness.plan.released_slots.empty());
}

TEST(SchedulerTest, AStepTakesEveryAnswersTokenAndAChunkOfPrompts) {
  const int chunk = limits::prefill_chunk_tokens, scored = limits::score_chunk_tokens;
  Harness harness;
  const auto sizes = [&] {
    harness.step();
    std::vector<std::size_t> tokens;
    for (const auto& step : harness.plan.sequences) tokens.push_back(step.tokens.size());
    return tokens;
  };
  const auto expected = [](std::initializer_list<int> list) {
    return std::vector<std::size_t>(list.begin(), list.end());
  };
  harness.submit(greedy(1, {1}, 9));
  harness.submit(greedy(2, some_ids(chunk - 10), 9));
  harness.submit(greedy(3, some_ids(chunk + 20), 9));
  harness.submit(ScoreRequest{4, some_ids(scored - 1), true});
  harness.submit(ScoreRequest{5, some_ids(4), true});
  EXPECT_EQ(sizes(), expected({1, chunk - 10, 9, scored - 1, 1}));
  EXPECT_EQ(sizes(), expected({1, 1, chunk, 3}));
  EXPECT_EQ(sizes(), expected({1, 1, 11}));
  EXPECT_EQ(sizes(), expected({1, 1, 1}));
}

TEST(SchedulerTest, NoMoreRequestsRunThanAStepTakes) {
  Harness harness;
  for (std::size_t i = 0; i < limits::batch_sequences + 3; ++i)
    harness.submit(greedy(i, {1}, i == 4 ? 1 : 3));
  harness.step();
  EXPECT_EQ(harness.plan.sequences.size(), limits::batch_sequences);
  harness.step();  // one has ended: the next in line starts
  EXPECT_EQ(harness.plan.sequences.size(), limits::batch_sequences);
  EXPECT_EQ(harness.plan.sequences.back().slot, static_cast<int>(limits::batch_sequences));
  harness.run_all();
  EXPECT_EQ(harness.order_of_ends().size(), limits::batch_sequences + 3);
}

TEST(SchedulerTest, ACancelledRequestEndsAndItsSlotIsReleasedOnce) {
  const struct {
    const char* name;
    int steps;  // of the first request before the cancel
    std::uint64_t cancelled;
    int generated;
    std::size_t released;  // slots at the end
  } table[] = {{"queued", 2, 2, 0, 2},
               {"before any step", 0, 1, 0, 2},
               {"in its prompt", 1, 1, 0, 3},
               {"in its answer", 5, 1, 3, 3},
               {"the last in line", 2, 3, 0, 2}};
  for (const auto& row : table) {
    SCOPED_TRACE(row.name);
    Harness harness;
    harness.submit(greedy(1, some_ids(2 * limits::prefill_chunk_tokens + 1), 6));
    harness.submit(greedy(2, {4, 5}, 3));
    harness.submit(greedy(3, {6}, 2));
    for (int i = 0; i < row.steps; ++i) harness.step();
    const auto events = harness.submit(Cancel{row.cancelled});
    ASSERT_EQ(events.size(), 1u);
    const DoneEvent done = harness.done(row.cancelled);
    EXPECT_EQ(done.reason, FinishReason::cancelled);
    EXPECT_EQ(done.generated_tokens, row.generated);
    EXPECT_TRUE(harness.submit(Cancel{row.cancelled}).empty());
    harness.run_all();
    for (const std::uint64_t id : {1, 2, 3}) {
      const bool was = id == row.cancelled;
      EXPECT_EQ(harness.done(id).reason, was ? FinishReason::cancelled : FinishReason::length) << id;
    }
    EXPECT_EQ(harness.tokens(2), greedy_answer({4, 5}, row.cancelled == 2 ? 0 : 3));
    EXPECT_EQ(harness.runner.slots_released(), row.released);
    EXPECT_EQ(harness.runner.slots_held(), 0u);
  }
}

TEST(SchedulerTest, ACancelOfNothingIsNothing) {
  Harness harness;
  EXPECT_TRUE(harness.submit(Cancel{9}).empty());
  EXPECT_TRUE(harness.scheduler.idle());
  harness.submit(greedy(1, {1}, 1));
  harness.run_all();
  EXPECT_TRUE(harness.submit(Cancel{1}).empty());  // it has ended
  EXPECT_TRUE(harness.scheduler.idle());
}

TEST(SchedulerTest, WhatCannotBeServedIsRefused) {
  const auto with = [](auto edit) {
    GenerateRequest request = greedy(4, {1, 2}, 3);
    edit(request);
    return Request(request);
  };
  const auto scoring = [](ScoreRequest request) { return Request(std::move(request)); };
  const struct {
    const char* name;
    Request request;
    const char* param;
    const char* words;
  } table[] = {
      {"empty prompt", with([](auto& r) { r.prompt = {}; }), "prompt", "empty"},
      {"id too large", with([](auto& r) {
         r.prompt = {1, vocabulary};
       }),
       "prompt", "id 16 at position 1"},
      {"id below 0", with([](auto& r) { r.prompt = {-1}; }), "prompt", "ids 0 to 15"},
      {"prompt fills the context", with([](auto& r) { r.prompt = some_ids(context); }), "prompt",
       "2000 tokens"},
      {"temperature", with([](auto& r) { r.sampling.temperature = -1; }), "temperature", "-1"},
      {"top_p", with([](auto& r) { r.sampling.top_p = 0; }), "top_p", "above 0"},
      {"nothing to score", scoring({4, {}}), "prompt", "empty"},
      {"scored id too large", scoring({4, {99}}), "prompt", "id 99"},
      {"too much to score", scoring({4, some_ids(context + 1), true}), "prompt", "2001"},
      {"position past the end", scoring({4, {1, 2}, false, {0, 2}}), "positions", "position 2"},
      {"position below 0", scoring({4, {1, 2}, false, {-1}}), "positions", "position -1"},
  };
  for (const auto& row : table) {
    Harness harness;
    const auto events = harness.submit(row.request);
    ASSERT_EQ(events.size(), 1u) << row.name;
    const auto* refused = std::get_if<RefusedEvent>(&events[0]);
    ASSERT_TRUE(refused) << row.name;
    EXPECT_EQ(refused->id, 4u);
    EXPECT_EQ(refused->param, row.param) << row.name;
    EXPECT_NE(refused->message.find(row.words), std::string::npos) << row.name << ": " << refused->message;
    EXPECT_TRUE(harness.scheduler.idle()) << row.name;
  }
}

TEST(SchedulerTest, WhatJustFitsIsServed) {
  for (const Request& request :
       std::vector<Request>{greedy(4, some_ids(context - 1), 0), ScoreRequest{4, some_ids(context), true},
                            ScoreRequest{4, {0, vocabulary - 1}, false, {0, 1}}}) {
    Harness harness;
    EXPECT_TRUE(harness.submit(request).empty());
    harness.run_all();
    harness.done(4);
  }
}

// Requests whose caches would not fit together wait for each other, in their order, and answer the same.
TEST(SchedulerTest, RequestsWaitForRoomInTheCache) {
  constexpr int block = cache_block_tokens;
  const struct {
    const char* name;
    std::int64_t cache_tokens;
    std::vector<std::pair<int, int>> requests;  // prompt, max_tokens
    std::size_t first_running;
    std::size_t most_running;
  } table[] = {
      {"all fit", 4 * block, {{100, 20}, {100, 156}, {1, 256}}, 3, 3},
      {"one at a time", 2 * block, {{300, 20}, {300, 20}, {300, 20}}, 1, 1},
      {"by what they may grow to", 2 * block, {{10, 20}, {10, 300}, {10, 20}}, 1, 1},
      {"two of three", 3 * block, {{200, 20}, {200, 200}, {200, 20}}, 2, 2},
      {"no overtaking", 4 * block, {{10, 20}, {900, 100}, {10, 20}}, 1, 1},
  };
  for (const auto& row : table) {
    Harness harness({vocabulary, static_cast<int>(std::min<std::int64_t>(context, row.cache_tokens)), 1,
                     row.cache_tokens});
    for (std::size_t i = 0; i < row.requests.size(); ++i) {
      const auto [prompt, tokens] = row.requests[i];
      ASSERT_TRUE(harness.submit(greedy(i, some_ids(prompt), tokens)).empty());
    }
    harness.step();
    EXPECT_EQ(harness.runner.slots_held(), row.first_running) << row.name;
    std::size_t most = 0;
    for (int steps = 0; !harness.scheduler.idle(); ++steps) {
      ASSERT_LT(steps, 10'000);
      harness.step();
      most = std::max(most, harness.runner.slots_held());
      EXPECT_LE(harness.runner.tokens_held(), row.cache_tokens) << row.name;
    }
    EXPECT_LE(most, row.most_running) << row.name;
    for (std::size_t i = 0; i < row.requests.size(); ++i) {
      const auto [prompt, tokens] = row.requests[i];
      EXPECT_EQ(harness.tokens(i), greedy_answer(some_ids(prompt), tokens)) << row.name;
      harness.done(i);
    }
  }
}

TEST(SchedulerTest, ACancelledRequestLetsTheNextOneIn) {
  Harness harness({vocabulary, 512, 1, 512});
  harness.submit(greedy(1, some_ids(300), 100));
  harness.submit(greedy(2, some_ids(300), 5));
  harness.step();
  harness.submit(Cancel{1});
  harness.run_all();
  EXPECT_EQ(harness.tokens(2), greedy_answer(some_ids(300), 5));
}

TEST(SchedulerTest, AFullQueueRefuses) {
  Harness harness;
  for (std::size_t i = 0; i < limits::queued_requests; ++i) {
    ASSERT_TRUE(harness.submit(greedy(i, {1}, 1)).empty()) << i;
  }
  const auto events = harness.submit(greedy(999, {1}, 1));
  ASSERT_EQ(events.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<RefusedEvent>(events[0]));
  harness.step();
  EXPECT_TRUE(harness.submit(greedy(999, {1}, 1)).empty());
}

}  // namespace
}  // namespace tandem::engine
