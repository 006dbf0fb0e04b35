#include "cli/training_flags.h"

#include <fmt/format.h>

#include "base/error.h"

namespace tandem::cli {

void add_training_flags(CLI::App& verb, std::string& parallel, cluster::Training& training) {
  verb.add_option(
          "--parallel", parallel,
          "Of training, tp: ranks share each matrix; dp: each holds the model and takes a part of every "
          "batch")
      ->check(CLI::IsMember({"tp", "dp"}))
      ->capture_default_str();
  verb.add_option("--dtype", training.dtype,
                  "Training computes in it, and keeps activations in it for gradients; parameters, sums and "
                  "what the optimizer keeps are float32 [bfloat16 on a GPU, float32 on a CPU]")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}));
  verb.add_flag("--grad-checkpoint", training.recompute,
                "Training keeps each layer's input alone and computes the rest anew");
}

cluster::Training split_training(cluster::Training training, const std::string& parallel,
                                 const parallel::Plan& plan, const models::ModelConfig& config) {
  if (plan.stages.size() > 1)
    throw InputError("training has no pipeline stages yet: take --parallel tp or dp");
  const int ranks = plan.world_size();
  if (parallel == "tp" && config.sizes.latent == 0 && config.sizes.kv_heads % ranks != 0) {
    throw InputError(
        fmt::format("{} key/value heads cannot be split over {} ranks without a copy, which training "
                    "does not do yet: take --parallel dp, or other --ranks",
                    config.sizes.kv_heads, ranks));
  }
  training.replicas = parallel == "dp" ? ranks : 1;
  return training;
}

}  // namespace tandem::cli
