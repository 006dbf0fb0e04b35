// What `tandem train` is asked for.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "cli/session.h"
#include "cluster/protocol.h"
#include "train/schedule.h"

namespace tandem::cli {

struct TrainFlags {
  std::string model, data, out = "adapters";
  int iters = 1000, batch_size = 4, accumulation = 1, longest = 2048;
  train::Schedule schedule{.peak = 1e-5};
  int report_every = 10, evaluate_every = 200, evaluate_batches = 25, save_every = 100, restarts = 10;
  int test_batches = 500;
  bool mask_prompt = false, skip_bad = false, json = false, resume = false, test = false;
  std::string parallel = "tp", save_dtype;
  std::string first_adapter;  // a file, to begin with
  cluster::Training training;
  ClusterFlags cluster;
  std::string as_config;    // all of them, as --config takes them
  std::string data_digest;  // of all token ids of the texts to train on
};

// All weights; else an adapter.
inline bool trains_all(const TrainFlags& flags) { return flags.training.method == "full"; }

void add_train_flags(CLI::App& verb, TrainFlags& flags);
// What follows from others, once all are given.
void settle(const CLI::App& verb, TrainFlags& flags);

}  // namespace tandem::cli
