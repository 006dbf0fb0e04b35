// Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685), with names, shapes and scale as mlx-lm's adapters
// have them: y = W x + scale · (x · lora_a) · lora_b, lora_a [in, rank], lora_b [rank, out]. With
// weight-decomposition (DoRA, Liu et al. 2024, arXiv:2402.09353) y is multiplied by m over the norms of the
// rows of W + scale · (lora_a · lora_b)ᵀ, which have no gradient (section 4.3); m [out] starts as the norms
// of W's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "models/adapter.h"
#include "train/trainable.h"
#include "weights/shard_table.h"

namespace tandem::train {

struct LoraOptions {
  int rank = 8;
  float scale = 20;
  bool dora = false;
  int layers = 16;  // the last so many; below 1: all
  // "self_attn.q_proj", …, and of experts "mlp.switch_mlp.gate_proj", …; empty: every linear product. Experts
  // have no DoRA.
  std::vector<std::string> keys;
  std::uint64_t seed = 0;
  mlx::core::Dtype activations = mlx::core::float32;  // the adapters compute in it too
};

class LoraModel : public Trainable {
 public:
  // `base` was made from `weights`, and its first layer is the model's `first_layer`; `group` has the ranks
  // that share its matrices. lora_a starts uniform in ±1/sqrt(in), the same on any split, lora_b at 0.
  LoraModel(models::Decoder base, int first_layer, const weights::ShardedWeights& weights,
            models::Group group, const LoraOptions& options);

  // Gives DoRA's m its first values. Every rank of the group calls it, once all have their weights.
  void start_magnitudes();

  // Of every layer here, as keys name them.
  const std::set<std::string>& products() const { return products_; }

  TrainedModel model(const std::vector<mlx::core::array>& values) override;
  int hidden() const override { return base_.config.sizes.hidden; }

 private:
  // Calls visit with each product that has an adapter, in the order of the parameters.
  void for_each_adapted(models::Decoder& model,
                        const std::function<void(models::ShardedLinear&)>& visit_linear,
                        const std::function<void(models::ShardedExperts&)>& visit_experts) const;
  // `in`: of the product.
  void add(const models::AdapterSlices& slices, int in);

  models::Decoder base_;
  int first_layer_;
  models::Group group_;
  std::vector<mlx::core::array> squares_;  // of DoRA: kernels::row_squares() of each product with an adapter
  std::set<std::string> products_;
  LoraOptions options_;
};

}  // namespace tandem::train
