// A plan: which rank computes what. A list of pipeline stages, each with a range of layers and the ranks that
// share every matrix of these layers (tensor parallel), by unequal shares where the machines are unequal.
//
//   {"stages": [{"layers": [0, 32], "ranks": [{"host": "local", "share": 0.5}, {"host": "studio2", "share":
//   0.5}]}]}
//
// Ranks are numbered in the order they stand.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "parallel/shard.h"

namespace tandem::parallel {

struct PlannedRank {
  std::string host = "local";  // "local": a child process here; else a name that `ssh` knows
  double share = 1;  // of its stage's heads, ffn columns and vocabulary; a stage's shares add up to 1
};

struct Stage {
  int first_layer = 0;
  int end_layer = 0;  // one past the last
  std::vector<PlannedRank> ranks;
};

// Where a rank stands among the stages. Rank i of a stage takes rows from rank i mod n of the n before it,
// and in training the rows' gradients from rank i mod m of the m after it.
struct Place {
  int stages = 1, stage = 0;
  int rank = 0;              // in its stage
  int source = -1;           // the rank that its rows come from; -1: it has the first layers
  std::vector<int> targets;  // those that its rows go to; empty: it has the last layers, or others send them
  int gradient_source = -1;  // the same of gradients; -1: it has the last layers
  std::vector<int> gradient_targets;
  std::vector<int> leaders;  // each stage's first rank; the last stage's sends logits to rank 0

  bool first() const { return stage == 0; }
  bool last() const { return stage + 1 == stages; }
};

struct Plan {
  std::vector<Stage> stages;

  int world_size() const;
  bool all_local() const;
  const PlannedRank& rank(int rank) const;  // std::out_of_range where there is none
  Place place(int rank) const;              // of a rank that there is
};

// One stage of equal shares, one rank a host.
Plan tensor_parallel_plan(const std::vector<std::string>& hosts, int layers);

// Layers of these sizes in consecutive ranges, one a stage, each of at least one layer and as near to an
// equal size as they allow. Requires sizes.size() >= stages.
std::vector<Range> split_layers(const std::vector<double>& sizes, int stages);

// Stages of one rank for each of `replicas` equal groups of hosts, which stand one after the other.
// InputError where there are no such groups, or more hosts in one than layers.
Plan pipeline_plan(const std::vector<std::string>& hosts, const std::vector<double>& layer_sizes,
                   int replicas = 1);

// InputError names the field and the value that is wrong. Shares need not add up to 1 in the file.
Plan plan_from_json(const nlohmann::json& json);
nlohmann::json to_json(const Plan& plan);

// What a model can be cut into.
struct Divisible {
  int layers = 0;
  int query_heads = 0;
  int ffn_columns = 0;
  int vocabulary = 0;
  int experts = 0;  // 0: none
  int expert_columns = 0, shared_columns = 0;
};
// InputError where the plan does not fit: layers missing, twice or out of order, more ranks that share a
// stage's matrices than query heads. A stage's ranks are `replicas` groups with all of its matrices each; 0:
// every rank has all of them.
void validate(const Plan& plan, const Divisible& model, int replicas = 1);

// Columns of every expert, which loads ranks evenly; whole experts where there are more ranks than such cuts.
ExpertSplit expert_split_of(int ranks, const Divisible& model);

}  // namespace tandem::parallel
