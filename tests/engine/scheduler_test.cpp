#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "base/limits.h"

namespace tandem::engine {
namespace {

constexpr int vocabulary = 16;
constexpr int context = 2000;

// A logit of the fake model: some number from what was read and where.
float logit(int token, int position, int id) {
  const unsigned mixed = (static_cast<unsigned>(token) * 2654435761u) ^
                         (static_cast<unsigned>(position + 1) * 40503u) ^
                         (static_cast<unsigned>(id + 1) * 2246822519u);
  return static_cast<float>(mixed % 1009) / 100;
}

std::vector<float> logits_after(int token, int position) {
  std::vector<float> row;
  for (int id = 0; id < vocabulary; ++id) row.push_back(logit(token, position, id));
  return row;
}

// The greedy answer of the fake model.
std::vector<int> greedy_answer(std::vector<int> ids, int tokens) {
  std::vector<int> answer;
  for (int i = 0; i < tokens; ++i) {
    const auto row = logits_after(ids.back(), static_cast<int>(ids.size()) - 1);
    answer.push_back(static_cast<int>(std::max_element(row.begin(), row.end()) - row.begin()));
    ids.push_back(answer.back());
  }
  return answer;
}

// Runs plans as StepRunner does, and checks what a runner relies on.
class FakeRunner {
 public:
  // `overlaps`: tokens may be the likeliest of the step before, and are given with the logits.
  explicit FakeRunner(bool overlaps = false) : overlaps_(overlaps) {}

  StepResult run(const StepPlan& plan) {
    for (const int slot : plan.released_slots) {
      EXPECT_EQ(held_.erase(slot), 1u) << "slot " << slot << " holds nothing";
      EXPECT_TRUE(released_.insert(slot).second) << "slot " << slot << " released twice";
    }
    StepResult result;
    auto& rows = result.logits;
    std::map<int, int> likeliest;  // by slot
    for (auto step : plan.sequences) {
      EXPECT_FALSE(released_.contains(step.slot)) << "slot " << step.slot << " used after its release";
      EXPECT_FALSE(step.tokens.empty());
      EXPECT_TRUE(std::is_sorted(step.rows.begin(), step.rows.end()));
      auto& held = held_[step.slot];
      for (int& token : step.tokens) {
        if (token != likeliest_token) continue;
        EXPECT_TRUE(likeliest_.contains(step.slot));
        token = likeliest_[step.slot];
      }
      for (const int row : step.rows) {
        const auto logits = logits_after(step.tokens[row], static_cast<int>(held.size()) + row);
        rows.insert(rows.end(), logits.begin(), logits.end());
        const auto best = std::max_element(logits.begin(), logits.end());
        if (overlaps_) result.likeliest.push_back(static_cast<int>(best - logits.begin()));
        if (overlaps_) likeliest[step.slot] = result.likeliest.back();
      }
      held.insert(held.end(), step.tokens.begin(), step.tokens.end());
    }
    if (!rows.empty()) likeliest_ = std::move(likeliest);
    return result;
  }
  std::size_t slots_held() const { return held_.size(); }
  std::int64_t tokens_held() const {  // each slot's in whole blocks
    std::int64_t sum = 0;
    for (const auto& [slot, held] : held_)
      sum += (static_cast<std::int64_t>(held.size()) + cache_block_tokens - 1) / cache_block_tokens *
             cache_block_tokens;
    return sum;
  }
  std::size_t slots_released() const { return released_.size(); }

 private:
  bool overlaps_;
  std::map<int, int> likeliest_;
  std::map<int, std::vector<int>> held_;
  std::set<int> released_;
};

struct Harness {
  explicit Harness(ServingLimits limits = {vocabulary, context}, bool overlaps = false)
      : scheduler(limits), runner(overlaps) {}

  // One step; each takes a second.
  std::vector<Event> step() {
    plan = scheduler.next(now_s);
    auto result = runner.run(plan);
    now_s += 1;
    return keep(scheduler.finish(plan, std::move(result), now_s));
  }
  std::vector<Event> submit(Request request) { return keep(scheduler.submit(std::move(request), now_s)); }
  void run_all() {
    for (int steps = 0; !scheduler.idle(); ++steps) {
      ASSERT_LT(steps, 10'000);
      step();
    }
  }

  std::vector<int> tokens(std::uint64_t id) const {
    std::vector<int> tokens;
    for (const auto& event : events) {
      if (const auto* token = std::get_if<TokenEvent>(&event); token && token->id == id)
        tokens.push_back(token->token);
    }
    return tokens;
  }
  // The request's one end.
  DoneEvent done(std::uint64_t id) const {
    std::vector<DoneEvent> ends;
    for (const auto& event : events) {
      EXPECT_TRUE(ends.empty() || id_of(event) != id) << "an event after the end";
      if (const auto* done = std::get_if<DoneEvent>(&event); done && done->id == id) ends.push_back(*done);
    }
    EXPECT_EQ(ends.size(), 1u) << "request " << id;
    return ends.empty() ? DoneEvent{} : ends.front();
  }
  std::vector<std::uint64_t> order_of_ends() const {
    std::vector<std::uint64_t> ids;
    for (const auto& event : events) {
      if (std::holds_alternative<DoneEvent>(event)) ids.push_back(id_of(event));
    }
    return ids;
  }

  Scheduler scheduler;
  FakeRunner runner;
  StepPlan plan;
  std::vector<Event> events;
  double now_s = 100;

 private:
  std::vector<Event> keep(std::vector<Event> got) {
    events.insert(events.end(), got.begin(), got.end());
    return got;
  }
};

std::vector<int> some_ids(int size) {
  std::vector<int> ids;
  for (int i = 0; i < size; ++i) ids.push_back((i * 7 + i / 5) % vocabulary);
  return ids;
}

GenerateRequest greedy(std::uint64_t id, std::vector<int> prompt, int max_tokens) {
  return {id, std::move(prompt), max_tokens, {}, {.temperature = 0}};
}

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

// Steps that are finished some time after they were started, in order, as pipeline stages give them back.
struct Pipeline {
  explicit Pipeline(int stages) : harness({vocabulary, context, stages}), depth(stages) {}
  // One rank, whose steps overlap.
  Pipeline() : harness({vocabulary, context}, /*overlaps=*/true), overlaps(true), depth(2) {}

  // One more step, or, where none can start or the stages are full, the oldest one's end.
  void move() {
    StepPlan plan = under_way.size() < depth ? harness.scheduler.next(harness.now_s, overlaps) : StepPlan{};
    if (!plan.empty()) {
      auto result = harness.runner.run(plan);
      under_way.emplace_back(std::move(plan), std::move(result));
    } else {
      ASSERT_FALSE(under_way.empty());
      auto [oldest, result] = std::move(under_way.front());
      under_way.pop_front();
      for (auto& event : harness.scheduler.finish(oldest, std::move(result), harness.now_s))
        harness.events.push_back(event);
    }
    most_under_way = std::max(most_under_way, under_way.size());
  }
  void run_all() {
    for (int moves = 0; !harness.scheduler.idle() || !under_way.empty(); ++moves) {
      ASSERT_LT(moves, 10'000);
      move();
    }
  }

  Harness harness;
  bool overlaps = false;
  std::size_t depth;
  std::deque<std::pair<StepPlan, StepResult>> under_way;
  std::size_t most_under_way = 0;
};

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
  for (int cancelled_after = 0; cancelled_after < 40; ++cancelled_after) {
    SCOPED_TRACE(cancelled_after);
    Pipeline pipeline;
    pipeline.harness.submit(greedy(1, some_ids(limits::prefill_chunk_tokens + 3), 7));
    pipeline.harness.submit(greedy(2, {4, 5}, 40));
    pipeline.harness.submit(greedy(3, {6}, 1));
    auto ends = greedy(4, {7, 8}, 30);
    const auto whole = greedy_answer({7, 8}, 30);
    ends.end_ids = {whole[12]};
    const auto end = std::find(whole.begin(), whole.end(), whole[12]);
    pipeline.harness.submit(ends);
    pipeline.harness.submit(greedy(5, {9}, 200));
    for (int i = 0; i < cancelled_after; ++i) pipeline.move();
    pipeline.harness.submit(Cancel{5});
    auto sampled = greedy(6, {10, 11}, 9);
    sampled.sampling.temperature = 1;
    pipeline.harness.submit(sampled);
    pipeline.harness.submit(ScoreRequest{7, some_ids(20), true});
    pipeline.run_all();
    EXPECT_EQ(pipeline.harness.tokens(1), greedy_answer(some_ids(limits::prefill_chunk_tokens + 3), 7));
    EXPECT_EQ(pipeline.harness.tokens(2), greedy_answer({4, 5}, 40));
    EXPECT_EQ(pipeline.harness.tokens(3), greedy_answer({6}, 1));
    EXPECT_EQ(pipeline.harness.tokens(4), std::vector<int>(whole.begin(), end));
    EXPECT_EQ(pipeline.harness.done(5).reason, FinishReason::cancelled);
    EXPECT_EQ(pipeline.harness.tokens(6).size(), 9u);
    EXPECT_EQ(pipeline.harness.done(7).reason, FinishReason::end);
    EXPECT_EQ(pipeline.most_under_way, 2u);
    EXPECT_EQ(pipeline.harness.runner.slots_held(), 0u);
  }
}

TEST(SchedulerTest, AnAnswerGoesAheadWhereItTakesTheLikeliestToken) {
  const auto second_step = [](GenerateRequest request) {
    Pipeline pipeline;
    pipeline.harness.submit(request);
    pipeline.move();
    return pipeline.harness.scheduler.next(0, true).sequences.size();
  };
  auto request = greedy(1, {1, 2}, 2);
  EXPECT_EQ(second_step(request), 1u);
  request.max_tokens = 1;
  EXPECT_EQ(second_step(request), 0u);
  request.max_tokens = 2;
  request.sampling.repetition_penalty = 1.1F;
  EXPECT_EQ(second_step(request), 0u);
  request.sampling = {.temperature = 0.5F};
  EXPECT_EQ(second_step(request), 0u);
}

}  // namespace
}  // namespace tandem::engine
