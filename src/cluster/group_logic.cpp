#include "cluster/group_logic.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::cluster {
namespace {

using Phase = GroupState::Phase;

std::string name_of(const GroupState& state, int rank) {
  return fmt::format("rank {} (on {})", rank, state.ranks[rank].host);
}

bool all(const GroupState& state, auto has) {
  return std::all_of(state.ranks.begin(), state.ranks.end(), has);
}

// A rank's first word on its failure is the cause; what follows are effects.
void fail(RankState& rank, Failed failed) {
  if (!rank.failed) rank.failed = std::move(failed);
}

// After a first sign of failure the others get a moment to say more: the cause often reaches us after its
// effects.
void start_failing(GroupState& state, std::int64_t now_ms) {
  if (state.phase == Phase::failing || state.phase == Phase::failed) return;
  state.phase = Phase::failing;
  state.deadline_ms = now_ms + limits::failure_gathering.count();
}

// How a worker ended that told no reason. ssh itself ends with 255, the other machine's shell with 127 where
// there is no such program.
std::string silent_end(const RankState& rank) {
  if (rank.listening) return fmt::format("the worker {}", *rank.ending);
  if (rank.host != "local" && *rank.ending == "exited with code 255")
    return fmt::format("ssh failed; see whether \"ssh {} true\" works without a password", rank.host);
  if (rank.host != "local" && *rank.ending == "exited with code 127")
    return "there is no such tandem; --remote-program names it there";
  return fmt::format("the worker {} before it said anything", *rank.ending);
}

// The rank that closed a connection, by what another rank says.
std::optional<int> closer_in(const std::string& message) {
  int rank = -1, end = 0;
  std::sscanf(message.c_str(), "rank %d closed the connection%n", &rank, &end);
  return end > 0 ? std::optional(rank) : std::nullopt;
}

// What the lowest rank says of another one; but a rank that closed a connection had its reason, and may have
// said it.
std::optional<std::string> first_complaint(const GroupState& state) {
  const int ranks = static_cast<int>(state.ranks.size());
  const auto has_failed = [&](int rank) { return rank >= 0 && rank < ranks && state.ranks[rank].failed; };
  int first = 0;
  while (first < ranks && !has_failed(first)) ++first;
  if (first == ranks) return std::nullopt;
  int telling = first;
  for (int hops = 0; hops < ranks; ++hops) {
    const auto closer = closer_in(state.ranks[telling].failed->message);
    if (!closer || !has_failed(*closer)) break;
    telling = hops + 1 < ranks ? *closer : first;  // each blames the next one
  }
  return fmt::format("{}: {}", name_of(state, telling), state.ranks[telling].failed->message);
}

// The most telling of what the ranks said: what the user can mend, then a process that ended without a word,
// then what went wrong inside, then what ranks say of each other.
GiveUp verdict(const GroupState& state) {
  const auto said = [&](auto telling) -> std::optional<std::string> {
    for (int rank = 0; rank < static_cast<int>(state.ranks.size()); ++rank) {
      const auto& failed = state.ranks[rank].failed;
      if (failed && telling(*failed)) return fmt::format("{}: {}", name_of(state, rank), failed->message);
    }
    return std::nullopt;
  };
  const auto input = [](const Failed& failed) { return failed.kind == "input"; };
  const auto own = [](const Failed& failed) { return failed.kind != "cluster"; };
  for (const auto& rank : state.ranks) {
    // Every rank finds the same fault in the user's input: naming one would only puzzle, but on another
    // machine it may be that machine's.
    if (rank.failed && rank.failed->kind == "input") {
      return {true, rank.host == "local" ? rank.failed->message : *said(input)};
    }
  }
  for (int rank = 0; rank < static_cast<int>(state.ranks.size()); ++rank) {
    if (state.ranks[rank].ending && !state.ranks[rank].failed)
      return {false, fmt::format("{}: {}", name_of(state, rank), silent_end(state.ranks[rank]))};
  }
  if (const auto message = said(own)) return {false, *message};
  const auto complaint = first_complaint(state);
  return {false, complaint ? *complaint : "the group of workers ended"};
}

std::vector<Action> join_all(GroupState& state) {
  state.phase = Phase::joining;
  Join join{{}, state.secret};
  for (const auto& rank : state.ranks) join.ranks.push_back(*rank.listening);
  std::vector<Action> actions;
  for (int rank = 0; rank < static_cast<int>(state.ranks.size()); ++rank) {
    actions.push_back(Send{rank, {{"join", join}}});
  }
  return actions;
}

// Memory is measured when every rank has loaded: ranks of one machine share it.
std::vector<Action> measure_all(GroupState& state) {
  state.phase = Phase::measuring;
  std::vector<Action> actions;
  for (int rank = 0; rank < static_cast<int>(state.ranks.size()); ++rank) {
    actions.push_back(Send{rank, {{"go", nlohmann::json::object()}}});
  }
  return actions;
}

std::vector<Action> run_all(GroupState& state) {
  std::vector<RankRoom> rooms;
  for (const auto& rank : state.ranks) rooms.push_back({rank.host, *rank.room});
  try {
    state.capacity = capacity_of(rooms, state.wish);
  } catch (const InputError& error) {
    state.phase = Phase::failed;
    return {GiveUp{true, error.what()}};
  }
  state.phase = Phase::running;
  return {Send{0, {{"serve", Serve{state.capacity.context, state.capacity.cache_tokens}}}}, Running{}};
}

std::vector<Action> take_line(GroupState& state, const Line& line, std::int64_t now_ms) {
  RankState& rank = state.ranks[line.rank];
  const auto& object = line.object;
  const auto has = [&](const char* name) { return object.contains(name); };
  if (has("failed")) {
    fail(rank, object["failed"].get<Failed>());
    start_failing(state, now_ms);
    return {};
  }
  if (state.phase == Phase::failing || state.phase == Phase::failed) return {};
  if (has("alive")) return {};
  if (has("listening")) {
    rank.listening = object["listening"].get<Listening>();
    const bool complete =
        state.phase == Phase::starting && all(state, [](auto& r) { return r.listening.has_value(); });
    return complete ? join_all(state) : std::vector<Action>{};
  }
  if (has("progress")) {
    rank.progress = object["progress"].get<Progress>();
    return {Loading{}};
  }
  if (has("ready")) {
    rank.ready = object["ready"].get<Ready>();
    rank.status.resident_bytes = rank.status.peak_bytes = rank.ready->resident_bytes;
    const bool complete =
        state.phase == Phase::joining && all(state, [](auto& r) { return r.ready.has_value(); });
    if (!complete) return {};
    if (!state.trains) return measure_all(state);
    state.phase = Phase::running;
    return {Running{}};
  }
  if (has("room")) {
    rank.room = object["room"].get<Room>();
    const bool complete =
        state.phase == Phase::measuring && all(state, [](auto& r) { return r.room.has_value(); });
    return complete ? run_all(state) : std::vector<Action>{};
  }
  if (has("status")) {
    rank.status = object["status"].get<Status>();
    return {};
  }
  if (has("trained")) return {Trained{object["trained"]}};
  return {Deliver{engine::event_from_json(object)}};
}

// While no one looked (the conductor was stopped, or its terminal) no rank was silent.
void look(GroupState& state, std::int64_t now_ms) {
  const auto blind_ms = now_ms - std::exchange(state.looked_ms, now_ms);
  if (blind_ms < limits::sign_of_life.count()) return;
  for (auto& rank : state.ranks) rank.heard_ms += blind_ms;
}

// Whatever a worker computes or waits for, it says that it is alive.
void find_silent(GroupState& state, std::int64_t now_ms) {
  using enum Phase;
  if (state.phase != joining && state.phase != measuring && state.phase != running) return;
  for (auto& rank : state.ranks) {
    if (now_ms - rank.heard_ms < limits::silence.count()) continue;
    fail(rank, {"internal", fmt::format("the worker has said nothing for {} s: is it stopped?",
                                        limits::silence.count() / 1000)});
    start_failing(state, now_ms);
  }
}

std::vector<Action> tick(GroupState& state, std::int64_t now_ms) {
  if (state.phase == Phase::starting && now_ms >= state.deadline_ms) {
    for (auto& rank : state.ranks) {
      if (!rank.listening) {
        fail(rank, {"internal",
                    fmt::format("the worker said nothing for {} s", limits::worker_start.count() / 1000)});
      }
    }
    start_failing(state, now_ms);
  }
  find_silent(state, now_ms);
  const bool everyone_spoke =
      state.phase == Phase::failing && all(state, [](auto& r) { return r.failed || r.ending; });
  if (state.phase == Phase::failing && (everyone_spoke || now_ms >= state.deadline_ms)) {
    state.phase = Phase::failed;
    return {verdict(state)};
  }
  return {};
}

}  // namespace

GroupState begin(const std::vector<std::string>& hosts, std::string secret, std::int64_t now_ms,
                 const ContextWish& wish) {
  GroupState state;
  state.wish = wish;
  for (const auto& host : hosts) state.ranks.push_back({.host = host, .heard_ms = now_ms});
  state.secret = std::move(secret);
  state.deadline_ms = now_ms + limits::worker_start.count();
  state.looked_ms = now_ms;
  return state;
}

std::vector<Action> advance(GroupState& state, const Happening& happening, std::int64_t now_ms) {
  std::vector<Action> actions;
  look(state, now_ms);
  const auto unreadable = [&](int rank, const char* why) {
    fail(state.ranks[rank], {"internal", fmt::format("its control channel is damaged: {}", why)});
    start_failing(state, now_ms);
  };
  if (const auto* line = std::get_if<Line>(&happening)) {
    state.ranks[line->rank].heard_ms = now_ms;
    try {
      actions = take_line(state, *line, now_ms);
    } catch (const nlohmann::json::exception& error) {
      unreadable(line->rank, error.what());
    } catch (const ClusterError& error) {
      unreadable(line->rank, error.what());
    }
  } else if (const auto* ended = std::get_if<Ended>(&happening)) {
    state.ranks[ended->rank].ending = ended->how;
    start_failing(state, now_ms);
  } else if (const auto* broken = std::get_if<Unreadable>(&happening)) {
    unreadable(broken->rank, broken->why.c_str());
  }
  for (auto& action : tick(state, now_ms)) actions.push_back(std::move(action));
  return actions;
}

}  // namespace tandem::cluster
