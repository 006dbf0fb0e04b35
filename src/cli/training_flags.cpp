#include "cli/training_flags.h"

#include <fmt/format.h>

#include "base/error.h"

namespace tandem::cli {

void add_training_flags(CLI::App& verb, std::string& parallel, cluster::Training& training) {
  verb.add_option(
          "--parallel", parallel,
          "Of training, tp: ranks share each matrix; dp: each holds the model and takes a part of every "
          "batch; pp: each has some of the layers")
      ->check(CLI::IsMember({"tp", "dp", "pp"}))
      ->capture_default_str();
  verb.add_option("--dtype", training.dtype,
                  "Training computes in it, and keeps activations in it for gradients; parameters, sums and "
                  "what the optimizer keeps are float32 [bfloat16 on a GPU, float32 on a CPU]")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}));
  verb.add_flag("--grad-checkpoint", training.recompute,
                "Training keeps each layer's input alone and computes the rest anew");
}

parallel::Plan make_training_plan(ClusterFlags flags, const std::string& parallel,
                                  const models::ModelConfig& config) {
  if (parallel == "pp" && flags.plan.empty()) flags.plan = "pp";
  return make_plan(flags, config);
}

cluster::Training split_training(cluster::Training training, const std::string& parallel,
                                 const parallel::Plan& plan, const models::ModelConfig& config) {
  const bool staged = plan.stages.size() > 1;
  if (parallel == "dp" && staged)
    throw InputError("--parallel dp: the plan has pipeline stages: leave --plan out, or take --parallel pp");
  training.replicas = parallel == "dp" ? plan.world_size() : 1;
  if (parallel == "dp") return training;
  for (const auto& stage : plan.stages) {
    const int ranks = static_cast<int>(stage.ranks.size());
    if (config.sizes.latent == 0 && config.sizes.kv_heads % ranks != 0) {
      throw InputError(
          fmt::format("{} key/value heads cannot be split over {} ranks without a copy, which training "
                      "does not do yet: take --parallel dp or pp, or other --ranks",
                      config.sizes.kv_heads, ranks));
    }
  }
  if (staged && config.tied_embeddings &&
      plan.stages.front().ranks.size() != plan.stages.back().ranks.size()) {
    throw InputError(fmt::format(
        "the embedding is the output matrix too, and the first stage has {} ranks, the last {}: give "
        "them as many",
        plan.stages.front().ranks.size(), plan.stages.back().ranks.size()));
  }
  return training;
}

}  // namespace tandem::cli
