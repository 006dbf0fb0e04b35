#include "cli/training_split.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/limits.h"
#include "cli/terminal.h"
#include "parallel/shard.h"
#include "train/trainer.h"

namespace tandem::cli {

namespace {

int recomputed_every(const std::string& text) {
  if (text == "true" || text == "all") return 1;
  if (text == "false" || text == "none") return 0;
  if (text == "auto") return cluster::Training::by_memory;
  int every = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), every);
  if (error == std::errc() && end == text.data() + text.size() && every >= 1 && every <= train::most_between)
    return every;
  throw CLI::ValidationError(
      fmt::format("={}: give all, none, auto, or a number of layers up to {}", text, train::most_between));
}

}  // namespace

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
          "With --parallel tp or pp: the ranks are so many groups, each of which has a model of its own and "
          "takes a part of every batch")
      ->check(CLI::Range(1, limits::ranks))
      ->capture_default_str();
  verb.add_option(
          "--dtype", training.dtype,
          "Training computes in it, and keeps activations in it for gradients; parameters and sums are "
          "float32 [bfloat16 on a GPU, float32 on a CPU]")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}));
  const std::string of_layers =
      "Training keeps only each layer's input and computes the rest anew; =N: of one layer in N; =auto: of "
      "as "
      "many as memory asks for; =none";
  verb.add_flag("--grad-checkpoint", of_layers)->each([&training](const std::string& text) {
    training.recomputed_every = recomputed_every(text);
  });
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

// What the ranks of one group of `replicas` share. InputError where they are no such equal groups.
parallel::Plan one_replica(const parallel::Plan& plan, int replicas) {
  parallel::Plan replica = plan;
  const auto ranks = plan.stages.front().ranks.size();
  for (auto& stage : replica.stages) {
    const auto equals_first = [&](const auto& rank) { return rank.share == stage.ranks.front().share; };
    if (!std::all_of(stage.ranks.begin(), stage.ranks.end(), equals_first))
      throw InputError(fmt::format(
          "--replicas {}: the plan's ranks have unequal shares: leave it out, or the shares", replicas));
    // Rows go from a replica's ranks of a stage to its own of the next, where stages are alike.
    if (stage.ranks.size() != ranks || ranks % static_cast<std::size_t>(replicas) != 0)
      throw InputError(fmt::format("--replicas {}: {} in {} do not divide into so many equal groups",
                                   replicas, counted(plan.world_size(), "rank"),
                                   counted(plan.stages.size(), "stage")));
    stage.ranks.resize(ranks / static_cast<std::size_t>(replicas));
  }
  return replica;
}

// Whether every rank of a split by this name is a replica.
bool replicates(const std::string& parallel) { return parallel == "dp" || parallel == "sdp"; }

}  // namespace

void settle_activations(const CLI::App& verb, const std::string& dtype, ClusterFlags& flags) {
  const bool half = dtype == "bfloat16" || dtype == "float16";
  if (verb.count("--activations") == 0) flags.activations = half ? "auto" : "float32";
}

parallel::Plan make_training_plan(ClusterFlags flags, const std::string& parallel, int replicas,
                                  const models::ModelConfig& config) {
  if (parallel == "pp" && flags.plan.empty()) flags.plan = "pp";
  return make_plan(flags, config, replicates(parallel) ? 0 : replicas);
}

cluster::Training split_training(cluster::Training training, const std::string& parallel,
                                 const parallel::Plan& plan, const models::ModelConfig& config) {
  const bool staged = plan.stages.size() > 1;
  if (replicates(parallel) && staged)
    throw InputError(fmt::format(
        "--parallel {}: the plan has pipeline stages: leave --plan out, or take --parallel pp", parallel));
  if (parallel == "sdp" && training.method != "full")
    throw InputError(
        "--parallel sdp: of what an adapter leaves as it is every rank would hold all: take tp or pp, or "
        "--method full");
  if (training.replicas > 1 && replicates(parallel))
    throw InputError(
        fmt::format("--replicas {}: is for --parallel tp and pp: leave it out", training.replicas));
  training.sharded = parallel == "sdp" && plan.world_size() > 1;
  if (replicates(parallel)) {
    training.replicas = plan.world_size();
    for (const auto& rank : plan.stages.front().ranks) training.shares.push_back(rank.share);
    return training;
  }
  if (parallel == "pp" && !staged && training.replicas > 1)
    throw InputError(
        fmt::format("--replicas {}: of {} none is left for a second stage: take fewer, or --parallel dp",
                    training.replicas, counted(plan.world_size(), "rank")));
  if (parallel == "pp" && !staged && plan.world_size() > 1)
    throw InputError("--parallel pp: the plan has one stage: leave --plan out, or give a file with several");
  const auto replica = training.replicas > 1 ? one_replica(plan, training.replicas) : plan;
  for (const auto& stage : replica.stages) check_kv_heads(stage, config);
  if (staged && config.tied_embeddings &&
      shards_of(replica.stages.front(), config).front().vocabulary_sizes !=
          shards_of(replica.stages.back(), config).front().vocabulary_sizes) {
    throw InputError(
        "the embedding is the output matrix too: give the plan's last stage as many ranks as its first, and "
        "the "
        "same shares");
  }
  return training;
}

}  // namespace tandem::cli
