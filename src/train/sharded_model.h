// Sharded data parallel (Rajbhandari et al. 2020, arXiv:1910.02054, stage 3): of each matrix, its gradient
// and what the optimizer remembers of it a rank holds some rows; a layer's are gathered when it is computed.
#pragma once

#include "parallel/collectives.h"
#include "train/full_model.h"

namespace tandem::train {

class ShardedModel : public FullModel {
 public:
  // As FullModel of the whole model.
  ShardedModel(const models::ModelConfig& config, parallel::Shard shard, weights::ShardedWeights weights,
               mlx::core::Dtype activations, bool balanced, models::Group sharers);

  TrainedModel model(const std::vector<mlx::core::array>& values) override;

 private:
  // The tensors of a layer, and behind the layers the embedding's and those of norm and output.
  using Places = std::vector<std::size_t>;  // in parameters()
  std::vector<mlx::core::array> of(const Places& places, const std::vector<mlx::core::array>& values) const;
  // From now on weights_ are the whole of `parts`, gathered once `input` is there.
  void bind(const Places& places, const std::vector<mlx::core::array>& parts, const mlx::core::array& input,
            parallel::InOrder order);

  models::Group sharers_;
  std::vector<Places> layer_places_;
  Places embedding_places_, output_places_;
};

}  // namespace tandem::train
