// The life of a group of workers as a pure function: (state, what happened, now) → what to do. No pipe, no
// process, no clock; conductor.cpp carries the actions out, tests/sim drives it with seeded failures.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "cluster/capacity.h"
#include "cluster/protocol.h"
#include "engine/request.h"

namespace tandem::cluster {

struct RankState {
  std::string host;  // as the plan names it
  std::optional<Listening> listening;
  Progress progress;
  std::optional<Ready> ready;
  std::optional<Room> room;
  Status status;
  std::optional<Failed> failed;
  std::optional<std::string> ending;  // how its process ended
  std::int64_t heard_ms = 0;          // when it last said something
};

struct GroupState {
  enum class Phase { starting, joining, measuring, running, failing, failed };
  Phase phase = Phase::starting;
  std::vector<RankState> ranks;
  std::string secret;
  ContextWish wish;
  bool trains = false;           // there is no cache to measure room for
  Capacity capacity;             // once running
  std::int64_t deadline_ms = 0;  // of starting; of failing
  std::int64_t looked_ms = 0;    // when something, or a Tick, happened last
};

// What happened to one rank. A Tick is time passing.
struct Line {
  int rank;
  nlohmann::json object;
};
struct Ended {
  int rank;
  std::string how;
};
struct Unreadable {  // its line broke the protocol
  int rank;
  std::string why;
};
struct Tick {};
using Happening = std::variant<Line, Ended, Unreadable, Tick>;

struct Send {
  int rank;
  nlohmann::json object;
};
struct Loading {};  // progress changed
struct Running {};  // every rank is ready, and its memory measured
struct Deliver {
  engine::Event event;
};
struct Trained {  // rank 0's answer to an order of training
  nlohmann::json answer;
};
// The group is over. `input`: the user can mend it.
struct GiveUp {
  bool input;
  std::string message;
};
using Action = std::variant<Send, Loading, Running, Deliver, Trained, GiveUp>;

GroupState begin(const std::vector<std::string>& hosts, std::string secret, std::int64_t now_ms,
                 const ContextWish& wish = {});
std::vector<Action> advance(GroupState& state, const Happening& happening, std::int64_t now_ms);

}  // namespace tandem::cluster
