// What every verb that trains asks: how the work is split, and what is computed in.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "cli/session.h"
#include "cluster/protocol.h"
#include "models/config.h"
#include "parallel/plan.h"

namespace tandem::cli {

// --parallel, --replicas, --dtype and --grad-checkpoint.
void add_training_flags(CLI::App& verb, std::string& parallel, cluster::Training& training);

// Where they are not asked for: rounded as for inference where training computes in half precision.
void settle_activations(const CLI::App& verb, const std::string& dtype, ClusterFlags& flags);

// The flags' plan: of pipeline stages where `--parallel` says so and no other plan is given.
parallel::Plan make_training_plan(ClusterFlags flags, const std::string& parallel, int replicas,
                                  const models::ModelConfig& config);

// `training` with what `--parallel` makes of the plan. InputError where training has no such split.
cluster::Training split_training(cluster::Training training, const std::string& parallel,
                                 const parallel::Plan& plan, const models::ModelConfig& config);

}  // namespace tandem::cli
