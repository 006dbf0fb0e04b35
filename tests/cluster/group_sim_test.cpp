// The group's logic among simulated workers: thousands of seeds, each with its own order of lines, deaths,
// complaints, rubbish and silence.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/limits.h"
#include "cluster/group_logic.h"

namespace tandem::cluster {
namespace {

using nlohmann::json;

constexpr int seeds = 6000;
constexpr std::int64_t tick_ms = limits::conductor_tick.count();
constexpr std::int64_t gathering_ms = limits::failure_gathering.count();
constexpr std::int64_t starting_ms = limits::worker_start.count();

enum class Fault { none, killed, internal, input, rubbish, unreadable, silent, stalls };

class Simulation {
 public:
  explicit Simulation(unsigned seed) : random_(seed), ranks_(1 + below(6)) {
    std::vector<std::string> hosts;
    for (int rank = 0; rank < ranks_; ++rank) hosts.push_back(below(2) ? "local" : "studio");
    state_ = begin(hosts, "secret", now_ms_);
    if (below(4) != 0) fault_ = static_cast<Fault>(1 + below(7));
    victim_ = below(ranks_);
    fault_ms_ = below(fault_ == Fault::silent ? 1 : 3000);
    silent_from_start_ = fault_ == Fault::silent;
    for (int rank = 0; rank < ranks_; ++rank) {
      if (!(silent_from_start_ && rank == victim_)) at(below(1500), {Line{rank, listening(rank)}});
    }
    if (fault_ != Fault::none && fault_ != Fault::silent) plan_fault();
  }

  void run() {
    const std::int64_t end = now_ms_ + (silent_from_start_ ? starting_ms + 2000 : 9000);
    while (now_ms_ < end && !testing::Test::HasFatalFailure()) {
      // Ticks at least as often as the conductor's, and whatever lies between.
      const std::int64_t next_tick = now_ms_ + 1 + below(static_cast<int>(tick_ms));
      while (!agenda_.empty() && agenda_.begin()->first <= next_tick) {
        const auto [when, happening] = *agenda_.begin();
        agenda_.erase(agenda_.begin());
        now_ms_ = std::max(now_ms_, when);
        happens(happening);
      }
      now_ms_ = next_tick;
      happens(Tick{});
    }
    check_end();
  }

  std::string trace() const {
    return "fault " + std::to_string(static_cast<int>(fault_)) + " of rank " + std::to_string(victim_) +
           " of " + std::to_string(ranks_) + " after " + std::to_string(fault_ms_) + " ms";
  }
  bool ran() const { return running_; }
  bool delivered() const { return delivered_ > 0; }
  Fault fault() const { return fault_; }

 private:
  int below(int bound) { return static_cast<int>(random_() % static_cast<unsigned>(bound)); }
  void at(std::int64_t delay_ms, Happening happening) {
    agenda_.emplace(now_ms_ + delay_ms, std::move(happening));
  }
  static json listening(int rank) {
    return {{"listening", Listening{"here", 1 + rank, {"127.0.0.1"}, 5000 + rank}}};
  }

  void plan_fault() {
    const auto failed = [&](const char* kind) {
      return Line{victim_, {{"failed", Failed{kind, "the cause"}}}};
    };
    const auto and_ends = [&](Happening first) {
      at(fault_ms_, std::move(first));
      if (below(2)) at(fault_ms_ + below(100), Ended{victim_, "exited with code 1"});
    };
    switch (fault_) {
      case Fault::killed:
        at(fault_ms_, Ended{victim_, "was killed by signal 9 (Killed)"});
        break;
      case Fault::internal:
        and_ends(failed("internal"));
        break;
      case Fault::input:
        and_ends(failed("input"));
        break;
      case Fault::unreadable:
        at(fault_ms_, Unreadable{victim_, "the cause"});
        break;
      case Fault::rubbish: {
        static const std::vector<json> lines{json::object(),
                                             {{"listening", 5}},
                                             {{"ready", {{"weight_bytes", "x"}}}},
                                             {{"token", {{"id", 1}}}},
                                             {{"failed", json::array()}},
                                             {{"status", nullptr}},
                                             {{"dance", json::object()}}};
        at(fault_ms_, Line{victim_, lines[below(static_cast<int>(lines.size()))]});
        break;
      }
      default:  // stalls: nobody hears of it but from the others
        break;
    }
    // The others lose their connection to it, or their patience, and then end; some only after the verdict.
    for (int rank = 0; rank < ranks_; ++rank) {
      if (rank == victim_ || below(5) == 0) continue;
      const int later = fault_ms_ + below(600);
      at(later, Line{rank, {{"failed", Failed{"cluster", "rank " + std::to_string(victim_) + " is gone"}}}});
      at(later + below(50), Ended{rank, "exited with code 1"});
    }
  }

  // What a worker does on what it is sent.
  void answer(const Send& send) {
    if (send.object.contains("join")) {
      EXPECT_EQ(listening_.size(), static_cast<std::size_t>(ranks_)) << "joined before all listened";
      EXPECT_TRUE(joined_.insert(send.rank).second) << "joined twice";
      for (int i = 0; i < 3; ++i)
        at(below(300), Line{send.rank, {{"progress", Progress{static_cast<std::uint64_t>(i), 3}}}});
      at(300 + below(700), Line{send.rank, {{"ready", Ready{1, 1, 1, 1, "cpu", 1}}}});
    } else if (send.object.contains("go")) {
      EXPECT_EQ(ready_.size(), static_cast<std::size_t>(ranks_)) << "told to go before all were ready";
      EXPECT_TRUE(gone_.insert(send.rank).second) << "told to go twice";
      at(below(50), Line{send.rank, {{"room", Room{"main", 9u << 30, 9u << 30, 1000, 0, 0, 64}}}});
      at(50 + below(4000), Line{send.rank, {{"status", Status{1, 2, 3}}}});
    } else if (send.object.contains("serve")) {
      EXPECT_EQ(send.rank, 0);
      EXPECT_EQ(gone_.size(), static_cast<std::size_t>(ranks_)) << "told to serve before all were measured";
      for (int i = 0; i < 5; ++i)
        at(below(4000), Line{0, engine::to_json(engine::Event(engine::TokenEvent{1, i}))});
    } else {
      ADD_FAILURE() << "sent " << send.object;
    }
  }

  // Dead or damaged workers say no more; a stalled one neither.
  bool reaches_us(const Happening& happening) const {
    const auto* line = std::get_if<Line>(&happening);
    if (!line) return true;
    if (ended_.contains(line->rank)) return false;
    return !(fault_ == Fault::stalls && line->rank == victim_ && now_ms_ >= fault_ms_);
  }

  void note(const Happening& happening) {
    if (const auto* line = std::get_if<Line>(&happening)) {
      const bool well_formed =
          line->object.begin() != line->object.end() && line->object.begin()->is_object();
      if (line->object.contains("listening") && well_formed) listening_.insert(line->rank);
      if (line->object.contains("ready") && well_formed && line->object["ready"].contains("device"))
        ready_.insert(line->rank);
      if (line->object.contains("failed")) first_failure();
      if (fault_ == Fault::rubbish && line->rank == victim_ && now_ms_ == fault_ms_) first_failure();
    } else if (const auto* ended = std::get_if<Ended>(&happening)) {
      ended_.insert(ended->rank);
      first_failure();
    } else if (const auto* broken = std::get_if<Unreadable>(&happening)) {
      ended_.insert(broken->rank);
      first_failure();
    }
  }
  void first_failure() {
    if (failure_ms_ < 0) failure_ms_ = now_ms_;
  }

  void happens(const Happening& happening) {
    if (!reaches_us(happening)) return;
    note(happening);
    for (const auto& action : advance(state_, happening, now_ms_)) {
      ASSERT_FALSE(verdict_) << "an action after the verdict";
      if (const auto* send = std::get_if<Send>(&action)) answer(*send);
      if (std::holds_alternative<Running>(action)) {
        EXPECT_EQ(gone_.size(), static_cast<std::size_t>(ranks_));
        EXPECT_FALSE(running_);
        running_ = true;
      }
      delivered_ += std::holds_alternative<Deliver>(action);
      if (const auto* give_up = std::get_if<GiveUp>(&action)) take_verdict(*give_up);
    }
    // A group that has failed says so in time.
    if (!verdict_ && failure_ms_ >= 0) {
      ASSERT_LT(now_ms_, failure_ms_ + gathering_ms);
    }
  }

  void take_verdict(const GiveUp& give_up) {
    verdict_ = give_up;
    const std::string rank = "rank " + std::to_string(victim_) + " (on ";
    EXPECT_NE(fault_, Fault::none);
    if (silent_from_start_) {
      EXPECT_GE(now_ms_, starting_ms);
      EXPECT_EQ(give_up.message.find(rank), 0u) << give_up.message;
      return;
    }
    ASSERT_GE(failure_ms_, 0) << "a verdict without a failure";
    // Once the cause has reached us, it is what is named.
    const bool cause_known = now_ms_ >= fault_ms_ && fault_ != Fault::stalls && cause_arrived();
    EXPECT_EQ(give_up.input, fault_ == Fault::input && cause_known);
    if (cause_known && fault_ != Fault::input) {
      EXPECT_EQ(give_up.message.find(rank), 0u) << give_up.message;
    }
    if (cause_known && fault_ == Fault::input) {
      EXPECT_NE(give_up.message.find("the cause"), std::string::npos) << give_up.message;
    }
  }
  bool cause_arrived() const {
    return state_.ranks[victim_].failed.has_value() || state_.ranks[victim_].ending.has_value();
  }

  void check_end() const {
    if (fault_ == Fault::none) {
      EXPECT_TRUE(running_);
      EXPECT_FALSE(verdict_);
      EXPECT_EQ(delivered_, 5);
      EXPECT_EQ(state_.phase, GroupState::Phase::running);
    } else if (fault_ == Fault::stalls) {
      EXPECT_EQ(verdict_.has_value(), failure_ms_ >= 0);  // with no one to complain, it may stay as it is
    } else {
      EXPECT_TRUE(verdict_);
      EXPECT_EQ(state_.phase, GroupState::Phase::failed);
    }
    EXPECT_TRUE(joined_.empty() || joined_.size() == static_cast<std::size_t>(ranks_));
    EXPECT_TRUE(gone_.empty() || gone_.size() == static_cast<std::size_t>(ranks_));
  }

  std::mt19937 random_;
  int ranks_;
  std::int64_t now_ms_ = 0;
  GroupState state_;
  std::multimap<std::int64_t, Happening> agenda_;

  Fault fault_ = Fault::none;
  int victim_ = 0;
  int fault_ms_ = 0;
  bool silent_from_start_ = false;

  std::set<int> listening_, ready_, joined_, gone_, ended_;
  std::int64_t failure_ms_ = -1;
  bool running_ = false;
  int delivered_ = 0;
  std::optional<GiveUp> verdict_;
};

TEST(GroupSimTest, NoOrderOfHappeningsBreaksTheGroup) {
  std::map<Fault, int> faults, in_answers;
  for (int seed = 0; seed < seeds; ++seed) {
    Simulation simulation(static_cast<unsigned>(seed));
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + simulation.trace());
    simulation.run();
    if (HasFailure()) return;
    ++faults[simulation.fault()];
    in_answers[simulation.fault()] += simulation.delivered();
  }
  // Each fault struck, and struck while answers came, often enough.
  EXPECT_EQ(faults.size(), 8u);
  for (const auto& [fault, count] : faults) {
    EXPECT_GT(count, seeds / 20) << static_cast<int>(fault);
    if (fault != Fault::silent) {
      EXPECT_GT(in_answers[fault], seeds / 200) << static_cast<int>(fault);
    }
  }
}

}  // namespace
}  // namespace tandem::cluster
