// Full training: every weight of the model, in float32.
#pragma once

#include "models/families.h"
#include "train/trainable.h"

namespace tandem::train {

class FullModel : public Trainable {
 public:
  // Reads this rank's weights; quantised ones become dense. What `weights` reads from outlives this. The
  // model computes with them rounded to the type of its activations, routers apart. `balanced`: V3's biases
  // of the choice of experts are parameters too. `sharers`: of each matrix with rows for all this rank holds
  // some.
  FullModel(models::ModelConfig config, parallel::Shard shard, parallel::Range layers,
            weights::ShardedWeights weights, mlx::core::Dtype activations, bool balanced,
            const std::optional<models::Group>& sharers = {});

  TrainedModel model(const std::vector<mlx::core::array>& values) override;
  int hidden() const override { return config_.sizes.hidden; }

 protected:
  // As the model computes with it.
  mlx::core::array in_use(const std::string& name, const mlx::core::array& value) const;

  models::ModelConfig config_;
  parallel::Shard shard_;
  parallel::Range layers_;
  weights::ShardedWeights weights_;
  mlx::core::Dtype activations_;
};

}  // namespace tandem::train
