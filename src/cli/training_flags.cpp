#include "cli/training_flags.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/limits.h"
#include "cli/terminal.h"
#include "parallel/shard.h"

namespace tandem::cli {

void add_training_flags(CLI::App& verb, std::string& parallel, cluster::Training& training) {
  verb.add_option(
          "--parallel", parallel,
          "Of training, tp: ranks share each matrix; dp: each holds the model and takes a part of every "
          "batch; sdp: as dp, but each holds some rows of every matrix and gathers a layer's to compute it, "
          "with --grad-checkpoint one layer's at a time; pp: each has some of the layers")
      ->check(CLI::IsMember({"tp", "dp", "sdp", "pp"}))
      ->capture_default_str();
  verb.add_option(
          "--replicas", training.replicas,
          "With --parallel tp: the ranks are so many groups, each of which shares a model of its own and "
          "takes a part of every batch")
      ->check(CLI::Range(1, limits::ranks))
      ->capture_default_str();
  verb.add_option(
          "--dtype", training.dtype,
          "Training computes in it, and keeps activations in it for gradients; parameters and sums are "
          "float32 [bfloat16 on a GPU, float32 on a CPU]")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}));
  verb.add_flag("--grad-checkpoint", training.recompute,
                "Training keeps each layer's input alone and computes the rest anew");
}

namespace {

std::vector<parallel::Shard> shards_of(const parallel::Stage& stage, const models::ModelConfig& config) {
  std::vector<double> shares;
  for (const auto& rank : stage.ranks) shares.push_back(rank.share);
  const auto experts = parallel::expert_split_of(static_cast<int>(shares.size()), config.divisible());
  std::vector<parallel::Shard> shards;
  for (int i = 0; i < static_cast<int>(shares.size()); ++i)
    shards.push_back(parallel::shard_of(config.sizes, shares, i, experts));
  return shards;
}

// A key/value head that two ranks hold would have a part of its gradient on each.
void check_kv_heads(const parallel::Stage& stage, const models::ModelConfig& config) {
  if (config.sizes.latent > 0) return;
  int held = 0;
  for (const auto& shard : shards_of(stage, config)) held += shard.kv_heads.size();
  if (held == config.sizes.kv_heads) return;
  throw InputError(fmt::format(
      "{} key/value heads cannot be split over {} ranks by their shares without a copy, which training "
      "does not do yet: take --parallel dp or pp, or other --ranks or shares",
      config.sizes.kv_heads, stage.ranks.size()));
}

}  // namespace

void settle_activations(const CLI::App& verb, const std::string& dtype, ClusterFlags& flags) {
  const bool half = dtype == "bfloat16" || dtype == "float16";
  if (verb.count("--activations") == 0) flags.activations = half ? "auto" : "float32";
}

parallel::Plan make_training_plan(ClusterFlags flags, const std::string& parallel,
                                  const models::ModelConfig& config) {
  if (parallel == "pp" && flags.plan.empty()) flags.plan = "pp";
  return make_plan(flags, config);
}

cluster::Training split_training(cluster::Training training, const std::string& parallel,
                                 const parallel::Plan& plan, const models::ModelConfig& config) {
  const bool staged = plan.stages.size() > 1;
  const bool replicated = parallel == "dp" || parallel == "sdp";
  if (replicated && staged)
    throw InputError(fmt::format(
        "--parallel {}: the plan has pipeline stages: leave --plan out, or take --parallel pp", parallel));
  if (parallel == "sdp" && training.method != "full")
    throw InputError(
        "--parallel sdp: of what an adapter leaves as it is every rank would hold all: take tp or pp, or "
        "--method full");
  if (training.replicas > 1 && parallel != "tp")
    throw InputError(fmt::format("--replicas {}: is for --parallel tp: leave it out", training.replicas));
  if (training.replicas > 1 && (staged || plan.world_size() % training.replicas != 0))
    throw InputError(fmt::format("--replicas {}: {} in {} do not divide into so many equal groups",
                                 training.replicas, counted(plan.world_size(), "rank"),
                                 counted(plan.stages.size(), "stage")));
  training.sharded = parallel == "sdp" && plan.world_size() > 1;
  if (replicated) {
    training.replicas = plan.world_size();
    for (const auto& rank : plan.stages.front().ranks) training.shares.push_back(rank.share);
    return training;
  }
  if (parallel == "pp" && !staged && plan.world_size() > 1)
    throw InputError("--parallel pp: the plan has one stage: leave --plan out, or give a file with several");
  if (training.replicas > 1) {
    parallel::Stage replica = plan.stages.front();
    const auto equals_first = [&](const auto& rank) { return rank.share == replica.ranks.front().share; };
    if (!std::all_of(replica.ranks.begin(), replica.ranks.end(), equals_first))
      throw InputError(
          fmt::format("--replicas {}: the plan's ranks have unequal shares: leave it out, or the shares",
                      training.replicas));
    replica.ranks.assign(replica.ranks.size() / static_cast<std::size_t>(training.replicas),
                         {.host = "", .share = 1.0 * training.replicas / plan.world_size()});
    check_kv_heads(replica, config);
    return training;
  }
  for (const auto& stage : plan.stages) check_kv_heads(stage, config);
  if (staged && config.tied_embeddings &&
      shards_of(plan.stages.front(), config).front().vocabulary_sizes !=
          shards_of(plan.stages.back(), config).front().vocabulary_sizes) {
    throw InputError(
        "the embedding is the output matrix too: give the plan's last stage as many ranks as its first, and "
        "the "
        "same shares");
  }
  return training;
}

}  // namespace tandem::cli
