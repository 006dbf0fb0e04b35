// Training in stages: the forward and backward of a step's micro-batches, one of each in turn, so that a
// stage holds what at most as many micro-batches as there are stages after it need (Narayanan et al. 2021,
// arXiv:2104.04473, section 2.2, "1F1B").
#pragma once

#include <optional>
#include <vector>

#include "parallel/plan.h"
#include "train/loss.h"
#include "train/trainable.h"

namespace tandem::train {

// Over micro-batches, of this rank's part: the sum of what its loss is (0 where it has not the last layers),
// and of the gradients, in the order of the parameters.
struct Sums {
  mlx::core::array nll;
  std::vector<mlx::core::array> gradients;
};

class Pipeline {
 public:
  // `world`: all ranks of all stages; `stage`: those of this one.
  Pipeline(models::Group world, parallel::Place place, models::Context stage, int hidden);

  // Of the loss times `scale`, layers recomputed as summed_nll() says. Every rank is given all micro-batches,
  // none of them empty. ClusterError where a rank is lost.
  Sums run(Trainable& trainable, const std::vector<std::vector<Sequence>>& micro_batches, float scale,
           int recomputed_every) const;
  // The sum of the negative log-likelihoods on the last stage, 0 on the others.
  mlx::core::array evaluate(Trainable& trainable, const std::vector<Sequence>& sequences) const;

  const models::Group& world() const { return world_; }
  const parallel::Place& place() const { return place_; }

 private:
  struct UnderWay;
  class Step;

  // [T, hidden] for what comes from another rank.
  mlx::core::array row_buffer(const std::vector<Sequence>& batch) const;
  // Rows to these ranks, while others come from `source` into `incoming`; either may be nothing.
  void exchange(const std::vector<int>& targets, const std::optional<mlx::core::array>& outgoing, int source,
                std::optional<mlx::core::array> incoming) const;

  models::Group world_;
  parallel::Place place_;
  models::Context stage_;
  int hidden_;
};

constexpr int parts_a_stage = 4;

// The batch in parts_a_stage parts for each of so many stages, which keep a pipeline full, of texts one after
// the other; what has no token to predict is left out.
std::vector<std::vector<Sequence>> parts_for(int stages, const std::vector<Sequence>& batch);

}  // namespace tandem::train
