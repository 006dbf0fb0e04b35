// What `tandem bench` measures, and how it prints that. Pure.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cluster/group_logic.h"

namespace tandem::cli {

struct Spread {
  double median = 0, least = 0, most = 0;
};
// Of at least one value.
Spread spread_of(std::vector<double> values);

// What a rank did: seconds in steps, of these in the steps' collectives, and the bytes of weights that its
// products read (counted on CPU alone).
struct RankWork {
  double step_s = 0, link_s = 0;
  std::uint64_t panel_bytes = 0;
};

// Prefill or decode: the repeats' seconds for `tokens` each, and what each rank did meanwhile, all repeats
// together.
struct Phase {
  int tokens = 0;               // 0: not measured
  std::vector<double> seconds;  // one a repeat
  double wall_s = 0;            // of all repeats, in which the ranks' times lie
  std::vector<RankWork> ranks;
  int steps_tokens = 0;  // that the steps computed, all repeats together: the prompts' too

  Spread tokens_per_s() const;
};

// Shares of the wall time: computing, in collectives, and the rest (waiting for the step's plan, sampling).
struct TimeShares {
  double compute = 0, link = 0, rest = 0;
};
TimeShares shares_of(const RankWork& work, double wall_s);

struct BenchFigures {
  std::string model;
  std::string weights;  // "4 bit, groups of 64", "bf16", …: empty where the files decide
  std::string plan;     // "1 rank", "2 ranks"
  int repeat = 0;
  int batch = 1;  // sequences computed at a time
  Phase prefill, decode;
  std::vector<cluster::RankState> ranks;
};

// Three aligned tables with units: speeds, ranks, and what their time went into.
std::string describe(const BenchFigures& figures);
// The same as one object; `ranks` is ranks_json()'s list, to which each rank's shares are added.
nlohmann::json to_json(const BenchFigures& figures, nlohmann::json ranks);

// A model's config.json with weights of `bits`: 4 or 8 (MLX's affine quantisation in groups of `group`), 16
// (float16) or bf16, whatever it said before.
nlohmann::json config_with_bits(nlohmann::json config, const std::string& bits, int group);

}  // namespace tandem::cli
