#include "cluster/group_logic.h"

#include <gtest/gtest.h>

#include <random>

#include "base/limits.h"

namespace tandem::cluster {
namespace {

using nlohmann::json;

Line listening(int rank) {
  return {rank, {{"listening", Listening{"here", 100 + rank, {"127.0.0.1"}, 5000 + rank}}}};
}
Line ready(int rank) { return {rank, {{"ready", Ready{1, 1, 1, "cpu"}}}}; }
Line failed(int rank, const char* kind, const char* what) { return {rank, {{"failed", Failed{kind, what}}}}; }

template <typename T>
int count(const std::vector<Action>& actions) {
  return static_cast<int>(std::count_if(actions.begin(), actions.end(),
                                        [](const Action& a) { return std::holds_alternative<T>(a); }));
}

TEST(GroupLogic, StartsInThreeSteps) {
  auto state = begin({"local", "studio2"}, "secret", 0);
  EXPECT_TRUE(advance(state, listening(0), 1).empty());
  const auto joins = advance(state, listening(1), 2);
  ASSERT_EQ(count<Send>(joins), 2);
  const auto join = std::get<Send>(joins[0]).object["join"].get<Join>();
  EXPECT_EQ(join.secret, "secret");
  EXPECT_EQ(join.ranks[1].port, 5001);
  EXPECT_EQ(count<Loading>(advance(state, Line{0, {{"progress", Progress{1, 2}}}}, 3)), 1);
  EXPECT_TRUE(advance(state, ready(1), 4).empty());
  const auto go = advance(state, ready(0), 5);
  EXPECT_EQ(count<Send>(go), 2);
  EXPECT_EQ(count<Running>(go), 1);
  EXPECT_EQ(count<Deliver>(advance(state, Line{0, {{"token", {{"id", 1}, {"token", 5}}}}}, 6)), 1);
}

// The verdict on what happens to a running group of two.
GiveUp verdict_of(const std::vector<Happening>& happenings) {
  auto state = begin({"local", "studio2"}, "", 0);
  for (const Happening& h : std::vector<Happening>{listening(0), listening(1), ready(0), ready(1)})
    advance(state, h, 1);
  std::vector<GiveUp> verdicts;
  const auto collect = [&](const Happening& happening, std::int64_t now) {
    for (const auto& action : advance(state, happening, now)) {
      if (const auto* give_up = std::get_if<GiveUp>(&action)) verdicts.push_back(*give_up);
    }
  };
  for (const auto& happening : happenings) collect(happening, 2);
  collect(Tick{}, 2 + limits::failure_gathering.count());
  collect(Tick{}, 1'000'000);
  EXPECT_EQ(verdicts.size(), 1U);
  return verdicts.empty() ? GiveUp{} : verdicts.front();
}

TEST(GroupLogic, NamesTheCauseInAnyOrder) {
  const Ended killed{1, "was killed by signal 9 (Killed)"};
  const Line echo = failed(0, "cluster", "rank 1 closed the connection");
  const Ended after{0, "exited with code 1"};
  const Line input = failed(1, "input", "no such file");
  struct Row {
    std::vector<Happening> happenings;
    bool input;
    const char* words;
  };
  const Row rows[] = {
      {{killed, echo, after}, false, "rank 1 (on studio2): the worker was killed by signal 9"},
      {{echo, after, killed}, false, "rank 1 (on studio2): the worker was killed by signal 9"},
      {{echo}, false, "rank 0 (on local): rank 1 closed"},
      {{echo, input}, true, "rank 1 (on studio2): no such file"},
      {{input, echo}, true, "no such file"},
      {{failed(0, "internal", "oops"), failed(1, "cluster", "rank 0 closed")}, false, "oops"},
      {{Line{1, {{"nonsense", 1}}}}, false, "rank 1 (on studio2): its control channel is damaged"},
      {{Line{1, {{"progress", 7}}}}, false, "damaged"},
      {{Unreadable{0, "a line too long"}}, false, "a line too long"},
  };
  for (const auto& row : rows) {
    const auto verdict = verdict_of(row.happenings);
    EXPECT_EQ(verdict.input, row.input) << verdict.message;
    EXPECT_NE(verdict.message.find(row.words), std::string::npos) << verdict.message;
  }
}

TEST(GroupLogic, AWorkerThatSaysNothingIsNamed) {
  auto state = begin({"local", "studio2"}, "", 0);
  advance(state, listening(0), 1);
  advance(state, Tick{}, limits::worker_start.count());
  const auto actions =
      advance(state, Tick{}, limits::worker_start.count() + limits::failure_gathering.count());
  ASSERT_EQ(count<GiveUp>(actions), 1);
  EXPECT_NE(std::get<GiveUp>(actions[0]).message.find("rank 1 (on studio2)"), std::string::npos);
}

// A life by seed: what happens at random must keep to the rules.
void live(unsigned seed) {
  std::mt19937 random(seed);
  const int ranks = 1 + static_cast<int>(random() % 4);
  auto state = begin(std::vector<std::string>(ranks, "local"), "", 0);
  std::vector<int> told(ranks, 0), joins(ranks, 0), goes(ranks, 0);
  int running = 0, give_ups = 0;
  std::int64_t now = 0, first_failure = -1;
  for (int step = 0; step < 60; ++step) {
    now += static_cast<std::int64_t>(random() % 50);
    const int rank = static_cast<int>(random() % ranks);
    Happening happening = Tick{};
    const auto dice = random() % 40;
    if (dice < 25) {
      if (told[rank] == 0)
        happening = listening(rank), told[rank] = 1;
      else if (told[rank] == 1 && joins[rank] > 0)
        happening = ready(rank), told[rank] = 2;
      else if (goes[rank] > 0)
        happening = Line{rank, {{"token", {{"id", 1}, {"token", 2}}}}};
    } else if (dice == 25) {
      happening = Ended{rank, "was killed"};
    } else if (dice == 26) {
      happening = Unreadable{rank, "garbage"};
    } else if (dice == 27) {
      happening = Line{rank, {{"garbage", 1}}};
    }
    const bool is_failure = dice >= 25 && dice <= 27;
    const bool over = give_ups > 0;
    for (const auto& action : advance(state, happening, now)) {
      if (const auto* send = std::get_if<Send>(&action)) {
        (send->object.contains("join") ? joins : goes)[send->rank]++;
      }
      running += std::holds_alternative<Running>(action);
      give_ups += std::holds_alternative<GiveUp>(action);
      ASSERT_FALSE(over) << "an action after the end, seed " << seed;
      ASSERT_FALSE(std::holds_alternative<Deliver>(action) && first_failure >= 0) << seed;
    }
    if (is_failure && first_failure < 0) first_failure = now;
    for (int r = 0; r < ranks; ++r) {
      ASSERT_LE(joins[r], 1) << seed;
      ASSERT_LE(goes[r], joins[r]) << seed;
      ASSERT_TRUE(goes[r] == 0 || std::all_of(told.begin(), told.end(), [](int t) { return t == 2; }))
          << seed;
    }
    ASSERT_LE(running, 1) << seed;
    ASSERT_LE(give_ups, 1) << seed;
  }
  advance(state, Tick{}, now);
  for (const auto& action : advance(state, Tick{}, now + limits::worker_start.count() * 2)) {
    give_ups += std::holds_alternative<GiveUp>(action);
  }
  ASSERT_TRUE(first_failure < 0 || state.phase == GroupState::Phase::failed) << seed;
}

TEST(GroupLogic, TenThousandLives) {
  for (unsigned seed = 0; seed < 10'000 && !testing::Test::HasFatalFailure(); ++seed) live(seed);
}

}  // namespace
}  // namespace tandem::cluster
