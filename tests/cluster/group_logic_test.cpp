#include "cluster/group_logic.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/limits.h"

namespace tandem::cluster {
namespace {

using nlohmann::json;
using Phase = GroupState::Phase;

constexpr std::int64_t start_ms = 1'000'000;
constexpr std::int64_t gathering = limits::failure_gathering.count();
constexpr std::int64_t starting = limits::worker_start.count();

Happening listening(int rank) {
  return Line{rank, {{"listening", Listening{"here", 100 + rank, {"127.0.0.1"}, 5000 + rank}}}};
}
Happening ready(int rank) { return Line{rank, {{"ready", Ready{10, 1, 9, 1000, "cpu", 1}}}}; }
Happening room(int rank, std::uint64_t free_bytes = 10'000'000'000) {
  return Line{rank,
              {{"room", Room{.free_bytes = free_bytes,
                             .total_bytes = 20'000'000'000,
                             .block_bytes = 256'000,
                             .model_context = 4096}}}};
}
Happening failed(int rank, const char* kind, const char* message) {
  return Line{rank, {{"failed", Failed{kind, message}}}};
}
Happening killed(int rank) { return Ended{rank, "was killed by signal 9 (Killed)"}; }
Happening exited(int rank) { return Ended{rank, "exited with code 1"}; }

struct Group {
  explicit Group(std::vector<std::string> hosts) : state(begin(hosts, "secret", start_ms)) {}
  explicit Group(int ranks) : Group(std::vector<std::string>(ranks, "local")) {}

  std::vector<Action> happens(const Happening& happening) { return advance(state, happening, now_ms); }
  // To the phase in which all run.
  Group& run() {
    for (int rank = 0; rank < size(); ++rank) happens(listening(rank));
    for (int rank = 0; rank < size(); ++rank) happens(ready(rank));
    for (int rank = 0; rank < size(); ++rank) happens(room(rank));
    EXPECT_EQ(state.phase, Phase::running);
    return *this;
  }
  // The verdict, once the time to gather failures is over.
  std::optional<GiveUp> verdict_of(const std::vector<Happening>& happenings) {
    std::vector<GiveUp> verdicts;
    const auto note = [&](const std::vector<Action>& actions) {
      for (const auto& action : actions) {
        if (const auto* give_up = std::get_if<GiveUp>(&action)) verdicts.push_back(*give_up);
      }
    };
    for (const auto& happening : happenings) {
      note(happens(happening));
      now_ms += 5;
    }
    now_ms += gathering;
    note(happens(Tick{}));
    note(happens(Tick{}));
    EXPECT_LE(verdicts.size(), 1u);
    return verdicts.empty() ? std::nullopt : std::optional(verdicts.front());
  }
  int size() const { return static_cast<int>(state.ranks.size()); }

  GroupState state;
  std::int64_t now_ms = start_ms;
};

TEST(GroupLogicTest, AllListenThenJoinThenGoThenServe) {
  Group group({"local", "studio2", "studio3"});
  EXPECT_EQ(group.state.phase, Phase::starting);
  EXPECT_TRUE(group.happens(listening(2)).empty());
  EXPECT_TRUE(group.happens(listening(0)).empty());
  auto actions = group.happens(listening(1));
  EXPECT_EQ(group.state.phase, Phase::joining);
  ASSERT_EQ(actions.size(), 3u);
  for (int rank = 0; rank < 3; ++rank) {
    const auto& send = std::get<Send>(actions[rank]);
    EXPECT_EQ(send.rank, rank);
    const auto join = send.object.at("join").get<Join>();
    EXPECT_EQ(join.secret, "secret");
    ASSERT_EQ(join.ranks.size(), 3u);
    for (int peer = 0; peer < 3; ++peer) EXPECT_EQ(join.ranks[peer].port, 5000 + peer);
  }

  actions = group.happens(Line{1, {{"progress", Progress{50, 100}}}});
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<Loading>(actions[0]));
  EXPECT_EQ(group.state.ranks[1].progress.read_bytes, 50u);
  EXPECT_TRUE(group.happens(ready(1)).empty());
  EXPECT_TRUE(group.happens(ready(2)).empty());
  actions = group.happens(ready(0));
  EXPECT_EQ(group.state.phase, Phase::measuring);
  ASSERT_EQ(actions.size(), 3u);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(std::get<Send>(actions[rank]).rank, rank);
    EXPECT_TRUE(std::get<Send>(actions[rank]).object.contains("go"));
  }
  EXPECT_TRUE(group.happens(room(2)).empty());
  EXPECT_TRUE(group.happens(room(0)).empty());
  actions = group.happens(room(1));
  EXPECT_EQ(group.state.phase, Phase::running);
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_EQ(std::get<Send>(actions[0]).rank, 0);
  EXPECT_EQ(std::get<Send>(actions[0]).object.at("serve").get<Serve>().context, 4096);
  EXPECT_EQ(group.state.capacity.context, 4096);
  EXPECT_TRUE(std::holds_alternative<Running>(actions[1]));
  EXPECT_EQ(group.state.ranks[0].status.resident_bytes, 1000u);

  actions = group.happens(Line{0, engine::to_json(engine::Event(engine::TokenEvent{4, 9}))});
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_EQ(std::get<engine::TokenEvent>(std::get<Deliver>(actions[0]).event).token, 9);
  EXPECT_TRUE(group.happens(Line{2, {{"status", Status{7, 8, 9, 1, 0.5, 0.25}}}}).empty());
  EXPECT_EQ(group.state.ranks[2].status.cache_bytes, 9u);
}

TEST(GroupLogicTest, AGroupWithoutMemoryForAContextEndsAndSaysSo) {
  Group group({"local", "studio2"});
  for (const int rank : {0, 1}) group.happens(listening(rank));
  for (const int rank : {0, 1}) group.happens(ready(rank));
  group.happens(room(0));
  const auto actions = group.happens(room(1, 1000));
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_TRUE(std::get<GiveUp>(actions[0]).input);
  EXPECT_NE(std::get<GiveUp>(actions[0]).message.find("studio2"), std::string::npos);
  EXPECT_EQ(group.state.phase, Phase::failed);
  EXPECT_TRUE(group.happens(exited(0)).empty());
}

// The phases in which ranks may be silent only as long as they are alive.
std::vector<Group> begun_groups(int ranks) {
  Group joining(ranks);
  for (int rank = 0; rank < ranks; ++rank) joining.happens(listening(rank));
  Group measuring = joining;
  for (int rank = 0; rank < ranks; ++rank) measuring.happens(ready(rank));
  return {joining, measuring, Group(ranks).run()};
}

// Lets time pass with ticks, all ranks but `silent` giving signs of life; what comes of it.
std::vector<Action> wait_with(Group& group, std::int64_t time_ms, int silent) {
  std::vector<Action> all;
  for (std::int64_t waited = 0; waited < time_ms; waited += 1000) {
    group.now_ms += 1000;
    for (int rank = 0; rank < group.size(); ++rank) {
      if (rank == silent) continue;
      for (auto& action : group.happens(Line{rank, {{"alive", json::object()}}})) all.push_back(action);
    }
    for (auto& action : group.happens(Tick{})) all.push_back(action);
  }
  return all;
}

TEST(GroupLogicTest, AGroupWhoseRanksAreAliveMayTakeForEver) {
  for (auto& group : begun_groups(2)) {
    const auto phase = group.state.phase;
    EXPECT_TRUE(wait_with(group, 100 * limits::silence.count(), -1).empty());
    EXPECT_EQ(group.state.phase, phase);
  }
}

TEST(GroupLogicTest, ARankThatIsStoppedIsNamedInEveryPhase) {
  for (auto& group : begun_groups(3)) {
    EXPECT_TRUE(wait_with(group, limits::silence.count() - 1000, 1).empty());
    const auto actions = wait_with(group, 2000, 1);
    ASSERT_EQ(actions.size(), 1u);
    EXPECT_EQ(std::get<GiveUp>(actions[0]).message,
              "rank 1 (on local): the worker has said nothing for 60 s: is it stopped?");
  }
}

TEST(GroupLogicTest, NoRankIsBlamedForTheTimeInWhichNoOneListened) {
  for (auto& group : begun_groups(2)) {
    group.now_ms += 100 * limits::silence.count();
    EXPECT_TRUE(group.happens(Tick{}).empty());
    EXPECT_TRUE(wait_with(group, limits::silence.count() - 1000, 0).empty());
    EXPECT_EQ(wait_with(group, 2000, 0).size(), 1u);
  }
}

// Each row in every order that keeps a rank's own happenings in theirs.
TEST(GroupLogicTest, TheVerdictNamesTheCauseWhateverCameFirst) {
  const struct {
    const char* name;
    std::vector<std::string> hosts;
    std::vector<std::vector<Happening>> of_ranks;
    bool input;
    const char* message;
  } table[] = {
      {"killed, its peer complains",
       {"local", "local"},
       {{failed(0, "cluster", "rank 1 closed its connection"), exited(0)}, {killed(1)}},
       false,
       "rank 1 (on local): the worker was killed by signal 9 (Killed)"},
      {"killed on another machine, two complain",
       {"local", "local", "studio2"},
       {{failed(0, "cluster", "rank 2 closed its connection"), exited(0)},
        {failed(1, "cluster", "rank 0 closed its connection"), exited(1)},
        {killed(2)}},
       false,
       "rank 2 (on studio2): the worker was killed by signal 9 (Killed)"},
      {"a bug inside, its peer complains",
       {"local", "local"},
       {{failed(0, "cluster", "rank 1 closed its connection"), exited(0)},
        {failed(1, "internal", "out of memory"), exited(1)}},
       false,
       "rank 1 (on local): out of memory"},
      {"input error here, a killed peer",
       {"local", "local"},
       {{killed(0)}, {failed(1, "input", "config.json is missing"), exited(1)}},
       true,
       "config.json is missing"},
      {"input error everywhere",
       {"local", "local"},
       {{failed(0, "input", "no such file"), exited(0)}, {failed(1, "input", "no such file"), exited(1)}},
       true,
       "no such file"},
      {"input error on another machine",
       {"local", "studio2"},
       {{failed(0, "cluster", "rank 1 closed its connection"), exited(0)},
        {failed(1, "input", "no such file"), exited(1)}},
       true,
       "rank 1 (on studio2): no such file"},
      {"a silent death and a bug: the death is nearer to the cause",
       {"local", "local"},
       {{failed(0, "internal", "odd"), exited(0)}, {killed(1)}},
       false,
       "rank 1 (on local): the worker was killed by signal 9 (Killed)"},
      {"complaints alone: the lowest rank's",
       {"local", "local"},
       {{failed(0, "cluster", "rank 1 stalled"), exited(0)},
        {failed(1, "cluster", "rank 0 stalled"), exited(1)}},
       false,
       "rank 0 (on local): rank 1 stalled"},
      {"a complaint that is the effect of another: its cause",
       {"local", "studio2", "local"},
       {{failed(0, "cluster", "rank 2 closed the connection during all_sum"), exited(0)},
        {failed(1, "cluster", "rank 0 sent nothing for 10 s"), exited(1)},
        {failed(2, "cluster", "rank 1 closed the connection at 10.0.0.1 during all_sum")}},
       false,
       "rank 1 (on studio2): rank 0 sent nothing for 10 s"},
      {"complaints in a circle: the lowest rank's",
       {"local", "local"},
       {{failed(0, "cluster", "rank 1 closed the connection during all_sum"), exited(0)},
        {failed(1, "cluster", "rank 0 closed the connection during all_sum"), exited(1)}},
       false,
       "rank 0 (on local): rank 1 closed the connection during all_sum"},
      {"a damaged line",
       {"local", "local"},
       {{failed(0, "cluster", "rank 1 stalled")}, {Unreadable{1, "no JSON"}}},
       false,
       "rank 1 (on local): its control channel is damaged: no JSON"},
      {"rubbish after the cause",
       {"local", "local"},
       {{failed(0, "input", "no such file"), Unreadable{0, "no JSON"}}, {}},
       true,
       "no such file"},
      {"a second complaint after the cause",
       {"local", "local"},
       {{failed(0, "internal", "out of memory"), failed(0, "cluster", "rank 1 stalled")}, {}},
       false,
       "rank 0 (on local): out of memory"},
      {"a kind that this version does not know",
       {"local", "local"},
       {{failed(0, "cosmic", "a ray"), exited(0)}, {failed(1, "cluster", "rank 0 closed its connection")}},
       false,
       "rank 0 (on local): a ray"},
  };
  for (const auto& row : table) {
    std::vector<int> order;  // whose next happening it is
    for (std::size_t rank = 0; rank < row.of_ranks.size(); ++rank)
      order.insert(order.end(), row.of_ranks[rank].size(), static_cast<int>(rank));
    do {
      Group group(row.hosts);
      group.run();
      std::vector<std::size_t> next(row.hosts.size());
      std::vector<Happening> happenings;
      std::string trace;
      for (const int rank : order) {
        happenings.push_back(row.of_ranks[rank][next[rank]++]);
        trace += std::to_string(rank);
      }
      const auto verdict = group.verdict_of(happenings);
      ASSERT_TRUE(verdict) << row.name << " " << trace;
      EXPECT_EQ(verdict->message, row.message) << row.name << " " << trace;
      EXPECT_EQ(verdict->input, row.input) << row.name << " " << trace;
    } while (std::next_permutation(order.begin(), order.end()));
  }
}

TEST(GroupLogicTest, TheVerdictWaitsForLateWordsButNotForEver) {
  Group group = Group(3).run();
  EXPECT_TRUE(group.happens(failed(0, "cluster", "rank 2 closed its connection")).empty());
  group.now_ms += gathering - 1;
  EXPECT_TRUE(group.happens(Tick{}).empty());
  group.now_ms += 1;
  const auto actions = group.happens(Tick{});
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_EQ(std::get<GiveUp>(actions[0]).message, "rank 0 (on local): rank 2 closed its connection");
}

TEST(GroupLogicTest, TheVerdictComesAtOnceWhenEveryoneHasSpoken) {
  Group group = Group(2).run();
  EXPECT_TRUE(group.happens(failed(0, "cluster", "rank 1 closed its connection")).empty());
  const auto actions = group.happens(killed(1));
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<GiveUp>(actions[0]));
}

TEST(GroupLogicTest, ALaterFailureDoesNotPutTheVerdictOff) {
  Group group = Group(3).run();
  group.happens(failed(0, "cluster", "a"));
  group.now_ms += gathering - 1;
  group.happens(failed(1, "cluster", "b"));
  group.now_ms += 1;
  EXPECT_EQ(group.happens(Tick{}).size(), 1u);
}

TEST(GroupLogicTest, AWorkerThatNeverSpeaksIsNamed) {
  Group group({"local", "studio2"});
  group.happens(listening(0));
  group.now_ms += starting - 1;
  EXPECT_TRUE(group.happens(Tick{}).empty());
  EXPECT_EQ(group.state.phase, Phase::starting);
  group.now_ms += 1;
  const auto verdict = group.verdict_of({Tick{}});
  ASSERT_TRUE(verdict);
  EXPECT_FALSE(verdict->input);
  EXPECT_EQ(verdict->message, "rank 1 (on studio2): the worker said nothing for 30 s");
}

TEST(GroupLogicTest, AWorkerThatEndsBeforeItSpokeIsNamed) {
  for (const auto& [how, told] : std::vector<std::pair<std::string, std::string>>{
           {"exited with code 1", "the worker exited with code 1 before it said anything"},
           {"exited with code 127", "there is no such tandem; --remote-program names it there"},
           {"exited with code 255",
            "ssh failed; see whether \"ssh studio2 true\" works without a password"}}) {
    const auto verdict = Group({"local", "studio2"}).verdict_of({listening(0), Ended{1, how}});
    ASSERT_TRUE(verdict);
    EXPECT_EQ(verdict->message, "rank 1 (on studio2): " + told);
  }
}

TEST(GroupLogicTest, LinesThatMakeNoSenseEndTheGroup) {
  for (const char* text :
       {"{}", R"({"listening": 5})", R"({"listening": {"host": "x"}})", R"({"ready": null})",
        R"({"progress": {"read_bytes": "many", "total_bytes": 1}})", R"({"status": []})",
        R"({"failed": "yes"})", R"({"failed": {"kind": 1, "message": 2}})", R"({"token": {"id": 1}})",
        R"({"dance": {}})"}) {
    Group group = Group(2).run();
    const auto verdict = group.verdict_of({Line{1, json::parse(text)}});
    ASSERT_TRUE(verdict) << text;
    EXPECT_FALSE(verdict->input);
    EXPECT_EQ(verdict->message.find("rank 1 (on local): its control channel is damaged: "), 0u)
        << text << ": " << verdict->message;
  }
}

TEST(GroupLogicTest, NothingFollowsTheVerdict) {
  Group group = Group(2).run();
  ASSERT_TRUE(group.verdict_of({killed(1)}));
  EXPECT_EQ(group.state.phase, Phase::failed);
  const std::vector<Happening> later{
      Line{0, engine::to_json(engine::Event(engine::TokenEvent{4, 9}))},
      Line{0, {{"progress", Progress{1, 2}}}},
      failed(0, "input", "late"),
      exited(0),
      killed(1),
      listening(0),
      ready(1),
      Unreadable{0, "no JSON"},
      Tick{},
  };
  for (const auto& happening : later) {
    EXPECT_TRUE(group.happens(happening).empty());
    group.now_ms += gathering;
  }
  EXPECT_EQ(group.state.phase, Phase::failed);
}

TEST(GroupLogicTest, NothingIsDeliveredWhileFailing) {
  Group group = Group(3).run();
  group.happens(killed(2));
  EXPECT_TRUE(group.happens(Line{0, engine::to_json(engine::Event(engine::TokenEvent{4, 9}))}).empty());
}

}  // namespace
}  // namespace tandem::cluster
