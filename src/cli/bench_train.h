// The speed and memory of steps of training, on random tokens; nothing is written.
#pragma once

#include <nlohmann/json.hpp>

#include "cluster/conductor.h"

namespace tandem::cli {

struct BenchTraining {
  int batch = 1;     // sequences of a step
  int tokens = 512;  // of each that count
  int repeat = 5;    // steps measured, after one that is not
  int vocabulary = 0;
};

// {"tokens", "step_s": of each step, "link_s": of all, "recomputed_every": train/loss.h, "peak_bytes": of
// rank 0}.
nlohmann::json bench_training(cluster::Conductor& conductor, const BenchTraining& sizes);

// The same as a table, with the median.
std::string describe_training(const std::string& name, const nlohmann::json& result);

}  // namespace tandem::cli
