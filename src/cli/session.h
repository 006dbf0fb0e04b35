// What every verb that runs a model does first: find it, plan, start the workers.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/conductor.h"
#include "models/config.h"
#include "parallel/plan.h"

namespace tandem::cli {

struct ClusterFlags {
  int default_ranks = 1;
  std::optional<int> ranks;
  std::vector<std::string> hosts;
  std::string device = "auto";
  std::string backend = "auto";
  std::string wire = "float32";
  std::string fp8 = "bfloat16";
  std::string activations = "auto";
  cluster::ContextWish context;
  int kv_bits = 16;
  bool cache_shards = false;
  int threads = 0;  // 0: the workers decide
  std::vector<std::string> pin;
  std::string plan;     // tp, pp or a file; empty: tp
  std::string adapter;  // a folder
  std::string remote_program = "tandem";
  bool verbose = false;
};

// Which workers, and how they compute.
void add_cluster_flags(CLI::App& verb, ClusterFlags& flags);
// What they keep for requests: context, cached keys and values, an adapter.
void add_request_flags(CLI::App& verb, ClusterFlags& flags);

// InputError where a path is no UTF-8: none other reaches a worker.
void check_path(const std::string& path);

// The folder of MODEL: a folder, or a name in the local Hugging Face cache. InputError where it is neither.
std::filesystem::path find_model(const std::string& model);

// A model's name without its path.
std::string short_name(const std::string& model);

// The plan that the flags ask for, of so many replicas, validated (parallel::validate()). InputError names
// the flag or the field of the file.
parallel::Plan make_plan(const ClusterFlags& flags, const models::ModelConfig& config, int replicas = 1);

// "4 ranks in 2 stages".
std::string describe_size(const parallel::Plan& plan);

// The plan as a table: which rank holds what.
std::string describe_plan(const parallel::Plan& plan, const models::ModelConfig& config);

// Starts the workers and loads the model, showing how far each rank is; with `shape`, a config.json, random
// weights of it in place of the folder's; with `training`, to train. Interrupted by Ctrl-C where an
// InterruptGuard takes it.
std::unique_ptr<cluster::Conductor> start(const std::filesystem::path& folder, const parallel::Plan& plan,
                                          const ClusterFlags& flags, const nlohmann::json& shape = {},
                                          const std::optional<cluster::Training>& training = {});

// Each rank's host, weights and memory now, as JSON and as a table.
nlohmann::json ranks_json(const cluster::Conductor& conductor);
std::string describe_ranks(const cluster::Conductor& conductor);

}  // namespace tandem::cli
