// Full training: every weight of the model, in float32.
#pragma once

#include "models/families.h"
#include "train/trainable.h"

namespace tandem::train {

class FullModel : public Trainable {
 public:
  // Reads this rank's weights; quantised ones become dense. What `weights` reads from outlives this. The
  // model computes with them rounded to the type of its activations, routers apart. `balanced`: V3's biases
  // of the choice of experts are parameters too.
  FullModel(models::ModelConfig config, parallel::Shard shard, parallel::Range layers,
            weights::ShardedWeights weights, mlx::core::Dtype activations, bool balanced);

  models::Decoder model(const std::vector<mlx::core::array>& values) override;
  int hidden() const override { return config_.sizes.hidden; }

 private:
  models::ModelConfig config_;
  parallel::Shard shard_;
  parallel::Range layers_;
  weights::ShardedWeights weights_;
  mlx::core::Dtype activations_;
};

}  // namespace tandem::train
