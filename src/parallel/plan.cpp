#include "parallel/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::parallel {
namespace {

using nlohmann::json;

const json& field(const json& object, const char* name, const std::string& where) {
  if (!object.is_object() || !object.contains(name)) {
    throw InputError(fmt::format("plan: {} has no \"{}\"", where, name));
  }
  return object.at(name);
}

void reject_unknown(const json& object, const std::set<std::string>& known, const std::string& where) {
  for (const auto& [name, value] : object.items()) {
    if (!known.contains(name))
      throw InputError(fmt::format("plan: {} has an unknown field \"{}\"", where, name));
  }
}

PlannedRank rank_from_json(const json& object, const std::string& where) {
  if (!object.is_object()) throw InputError(fmt::format("plan: {} is not an object", where));
  reject_unknown(object, {"host", "share"}, where);
  PlannedRank rank;
  if (object.contains("host")) {
    const json& host = object["host"];
    if (!host.is_string() || host.get<std::string>().empty() || host.get<std::string>().front() == '-') {
      throw InputError(fmt::format("plan: {}: \"host\" is {}; give \"local\" or a name that ssh knows", where,
                                   host.dump()));
    }
    rank.host = host.get<std::string>();
  }
  if (object.contains("share")) {
    const json& share = object["share"];
    if (!share.is_number() || !(share.get<double>() > 0) || share.get<double>() > limits::plan_share) {
      throw InputError(fmt::format("plan: {}: \"share\" is {}; give a number above 0, at most {}", where,
                                   share.dump(), limits::plan_share));
    }
    rank.share = share.get<double>();
  }
  return rank;
}

Stage stage_from_json(const json& object, const std::string& where) {
  const json& layers = field(object, "layers", where);
  const json& ranks = field(object, "ranks", where);
  reject_unknown(object, {"layers", "ranks"}, where);
  const auto is_layer = [](const json& value) {
    return value.is_number_integer() && value.get<std::int64_t>() >= 0 &&
           value.get<std::int64_t>() <= limits::plan_layers;
  };
  if (!layers.is_array() || layers.size() != 2 || !is_layer(layers[0]) || !is_layer(layers[1]) ||
      layers[0].get<int>() >= layers[1].get<int>()) {
    throw InputError(
        fmt::format("plan: {}: \"layers\" is {}; give [first, end] with 0 <= first < end, at most {}", where,
                    layers.dump(), limits::plan_layers));
  }
  if (!ranks.is_array() || ranks.empty()) {
    throw InputError(fmt::format("plan: {}: \"ranks\" is not a list of at least one rank", where));
  }
  Stage stage{layers[0].get<int>(), layers[1].get<int>(), {}};
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    stage.ranks.push_back(rank_from_json(ranks[i], fmt::format("{}, ranks[{}]", where, i)));
  }
  double sum = 0;
  for (const auto& rank : stage.ranks) sum += rank.share;
  for (auto& rank : stage.ranks) rank.share /= sum;
  return stage;
}

}  // namespace

int Plan::world_size() const {
  int size = 0;
  for (const auto& stage : stages) size += static_cast<int>(stage.ranks.size());
  return size;
}

bool Plan::all_local() const {
  return std::all_of(stages.begin(), stages.end(), [](const Stage& stage) {
    return std::all_of(stage.ranks.begin(), stage.ranks.end(),
                       [](const auto& rank) { return rank.host == "local"; });
  });
}

const PlannedRank& Plan::rank(int rank) const {
  for (const auto& stage : stages) {
    if (rank < static_cast<int>(stage.ranks.size())) return stage.ranks[rank];
    rank -= static_cast<int>(stage.ranks.size());
  }
  throw std::out_of_range("no such rank in the plan");
}

Place Plan::place(int rank) const {
  Place place{
      .stages = static_cast<int>(stages.size()), .targets = {}, .gradient_targets = {}, .leaders = {}};
  const auto size_of = [&](int stage) { return static_cast<int>(stages[stage].ranks.size()); };
  int first = 0;  // rank of the stage
  while (rank >= first + size_of(place.stage)) first += size_of(place.stage++);
  place.rank = rank - first;
  const int own = size_of(place.stage);
  if (!place.first()) {
    const int before = size_of(place.stage - 1);
    place.source = first - before + place.rank % before;
    for (int i = place.rank; i < before; i += own) place.gradient_targets.push_back(first - before + i);
  }
  if (!place.last()) {
    const int after = size_of(place.stage + 1);
    place.gradient_source = first + own + place.rank % after;
    for (int i = place.rank; i < after; i += own) place.targets.push_back(first + own + i);
  }
  for (int stage = 0, leader = 0; stage < place.stages; leader += size_of(stage++))
    place.leaders.push_back(leader);
  return place;
}

Plan tensor_parallel_plan(const std::vector<std::string>& hosts, int layers) {
  Stage stage{0, layers, {}};
  for (const auto& host : hosts) stage.ranks.push_back({host, 1.0 / static_cast<double>(hosts.size())});
  return Plan{{stage}};
}

std::vector<Range> split_layers(const std::vector<double>& sizes, int stages) {
  const int layers = static_cast<int>(sizes.size());
  assert(stages > 0 && layers >= stages);
  const double whole = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  std::vector<Range> ranges;
  int end = 0;
  double before = 0;  // size of the layers up to `end`
  for (int stage = 1; stage <= stages; ++stage) {
    const int begin = end, last_end = layers - (stages - stage);
    const double wanted = whole * stage / stages;
    // A layer goes to the stage that has more than half of it.
    while (end < last_end && (end == begin || stage == stages || before + sizes[end] / 2 <= wanted))
      before += sizes[end++];
    ranges.push_back({begin, end});
  }
  return ranges;
}

Plan pipeline_plan(const std::vector<std::string>& hosts, const std::vector<double>& layer_sizes,
                   int replicas) {
  const std::size_t layers = layer_sizes.size(), groups = static_cast<std::size_t>(replicas);
  if (hosts.size() % groups != 0) {
    throw InputError(fmt::format("{} ranks do not divide into {} equal groups: use a multiple of {}",
                                 hosts.size(), groups, groups));
  }
  const std::size_t stages = hosts.size() / groups;
  if (stages > layers) {
    throw InputError(
        fmt::format("{} pipeline stages, but the model has {} layers and each stage needs one: "
                    "use at most {} ranks",
                    stages, layers, layers * groups));
  }
  const auto ranges = split_layers(layer_sizes, static_cast<int>(stages));
  Plan plan;
  for (std::size_t i = 0; i < stages; ++i) {
    Stage stage{ranges[i].begin, ranges[i].end, {}};
    for (std::size_t group = 0; group < groups; ++group)
      stage.ranks.push_back({hosts[group * stages + i], 1.0 / replicas});
    plan.stages.push_back(std::move(stage));
  }
  return plan;
}

Plan plan_from_json(const json& object) {
  const json& stages = field(object, "stages", "the file");
  reject_unknown(object, {"stages"}, "the file");
  if (!stages.is_array() || stages.empty())
    throw InputError("plan: \"stages\" is not a list of at least one stage");
  Plan plan;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    plan.stages.push_back(stage_from_json(stages[i], fmt::format("stages[{}]", i)));
  }
  return plan;
}

json to_json(const Plan& plan) {
  json stages = json::array();
  for (const auto& stage : plan.stages) {
    json ranks = json::array();
    for (const auto& rank : stage.ranks) ranks.push_back({{"host", rank.host}, {"share", rank.share}});
    stages.push_back({{"layers", {stage.first_layer, stage.end_layer}}, {"ranks", ranks}});
  }
  return {{"stages", stages}};
}

namespace {

void check_layers(const Plan& plan, int layers) {
  int next = 0;
  bool in_order = true;
  std::vector<std::string> ranges;
  for (const auto& stage : plan.stages) {
    ranges.push_back(fmt::format("{} to {}", stage.first_layer, stage.end_layer));
    in_order &= stage.first_layer == next && stage.end_layer > next;
    next = stage.end_layer;
  }
  if (in_order && next == layers) return;
  throw InputError(
      fmt::format("plan: its stages have layers {}; give each of the model's layers, 0 to {}, to one stage, "
                  "in order",
                  fmt::join(ranges, ", "), layers));
}

// Where `ranks` share its matrices.
void check_stage(int ranks, const Divisible& model) {
  if (ranks > model.query_heads) {
    throw InputError(fmt::format(
        "{} ranks, but the model has {} query heads and each rank needs one: use at most {} ranks", ranks,
        model.query_heads, model.query_heads));
  }
  const auto check = [&](const char* name, int parts) {
    if (ranks <= parts) return;
    throw InputError(fmt::format(
        "{} ranks, but the model's {} can be cut into {} at most: use fewer ranks, or several stages", ranks,
        name, parts));
  };
  // A model of experts alone has no other ffn; 0 columns are none.
  if (model.ffn_columns > 0 || model.experts == 0) check("ffn", model.ffn_columns);
  if (model.shared_columns > 0) check("shared experts", model.shared_columns);
  if (model.experts > 0) check("experts", std::max(model.experts, model.expert_columns));
  check("vocabulary", model.vocabulary);
}

}  // namespace

void validate(const Plan& plan, const Divisible& model, int replicas) {
  if (plan.world_size() > limits::ranks) {
    throw InputError(fmt::format("{} ranks; at most {} are possible", plan.world_size(), limits::ranks));
  }
  check_layers(plan, model.layers);
  for (const auto& stage : plan.stages)
    check_stage(replicas > 0 ? std::max(1, static_cast<int>(stage.ranks.size()) / replicas) : 1, model);
}

ExpertSplit expert_split_of(int ranks, const Divisible& model) {
  return ranks <= model.expert_columns ? ExpertSplit::columns : ExpertSplit::whole;
}

}  // namespace tandem::parallel
