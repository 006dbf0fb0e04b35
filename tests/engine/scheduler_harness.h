// A model that is none, and requests to it: what the scheduler's tests run.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "engine/scheduler.h"

namespace tandem::engine {

inline constexpr int vocabulary = 16;
inline constexpr int context = 2000;

// A logit of the fake model: some number from what was read and where.
inline float logit(int token, int position, int id) {
  const unsigned mixed = (static_cast<unsigned>(token) * 2654435761u) ^
                         (static_cast<unsigned>(position + 1) * 40503u) ^
                         (static_cast<unsigned>(id + 1) * 2246822519u);
  return static_cast<float>(mixed % 1009) / 100;
}

inline std::vector<float> logits_after(int token, int position) {
  std::vector<float> row;
  for (int id = 0; id < vocabulary; ++id) row.push_back(logit(token, position, id));
  return row;
}

// The greedy answer of the fake model.
inline std::vector<int> greedy_answer(std::vector<int> ids, int tokens) {
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

inline std::vector<int> some_ids(int size) {
  std::vector<int> ids;
  for (int i = 0; i < size; ++i) ids.push_back((i * 7 + i / 5) % vocabulary);
  return ids;
}

inline GenerateRequest greedy(std::uint64_t id, std::vector<int> prompt, int max_tokens) {
  return {id, std::move(prompt), max_tokens, {}, {.temperature = 0}};
}

// Steps that are finished some time after they were started, in order, as pipeline stages give them back.
struct Pipeline {
  explicit Pipeline(int stages) : harness({vocabulary, context, stages}), depth(stages) {}
  // One rank, whose steps overlap.
  Pipeline() : harness({vocabulary, context}, /*overlaps=*/true), overlaps(true), depth(2) {}

  // One more step, or, where none can start or the stages are full, the oldest one's end.
  void move() {
    StepPlan plan;
    if (!overlaps || under_way.empty()) {
      if (under_way.size() < depth) plan = harness.scheduler.next(harness.now_s);
    } else if (under_way.size() < depth) {
      plan = harness.scheduler.ahead();
    }
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

}  // namespace tandem::engine
