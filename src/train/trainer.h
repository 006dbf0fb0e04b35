// Steps of training on one rank, together with the other ranks'.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/collectives.h"
#include "train/error_feedback.h"
#include "train/loss.h"
#include "train/optimizer.h"
#include "train/pipeline.h"
#include "train/trainable.h"

namespace tandem::train {

struct Ranks {
  models::Group world;
  models::Context stage;  // the ranks that share the matrices of this one's layers
  models::Group data;     // the ranks that hold the same part of the model, each with sequences of its own
  std::vector<double> shares;  // of each of those in every batch
  parallel::Place place;       // its rank counts all of the stage, of whatever replica
  bool sharded = false;        // the ranks of `data` hold parts of the matrices (sharded_model.h)

  // The ranks with the other parts of this one's tensors.
  const models::Group& parts() const { return sharded ? data : stage.group; }
};

struct TrainerOptions {
  OptimizerOptions optimizer;
  float clip = 0;            // the gradient's norm is at most this; 0: any
  int recomputed_every = 0;  // layers: loss.h
  // The loss is multiplied by it, so that small gradients do not vanish in float16, and the gradient divided:
  // halved by a step whose gradient is not finite, doubled after loss_scale_steps without one (Micikevicius
  // et al. 2018, arXiv:1710.03740). 0: neither.
  float loss_scale = 0;
  bool error_feedback = false;  // sums of gradients over ranks travel as bfloat16 (error_feedback.h)
};

constexpr int loss_scale_steps = 1000;
constexpr float largest_loss_scale = 1 << 24;

// Of layers whose activations take `needed_bytes` together: which have to be recomputed so that they fit into
// `free_bytes`, as options have it. A recomputed one takes next to nothing.
int recomputed_every(double needed_bytes, double free_bytes);
constexpr int most_between = 1000;  // layers

struct StepResult {
  double sum_nll = 0;  // over all tokens that count, of all ranks
  int tokens = 0;
  double gradient_norm = 0;  // of the mean over tokens, before clipping
  bool skipped = false;      // loss or gradient was not finite: nothing but the scale of the loss has changed
};

class Trainer {
 public:
  Trainer(std::unique_ptr<Trainable> trainable, Ranks ranks, const TrainerOptions& options);

  // One step by the mean gradient over the tokens of all micro-batches, one of which is in memory at a time.
  // Every rank is given all sequences, and takes its own of each micro-batch.
  StepResult step(const std::vector<std::vector<Sequence>>& micro_batches, double learning_rate);
  // The same without a step.
  StepResult evaluate(const std::vector<Sequence>& sequences);
  // From now on layers are recomputed where steps of `rows` tokens at once on this rank, in texts of up to
  // `longest`, would need more than `free_bytes`, which forwards over a few made-up tokens tell: one in two
  // or in more, else all, and as many as some rank of the group has to. Every rank calls it.
  void recompute_by_memory(int rows, int longest, std::uint64_t free_bytes);

  std::vector<Parameter>& parameters() { return trainable_->parameters(); }
  const std::vector<Parameter>& fixed() const { return trainable_->fixed(); }
  Optimizer& optimizer() { return optimizer_; }
  // How the loss is scaled now, and the steps since that changed.
  struct LossScale {
    float scale;  // 0: not at all
    int steps;
  };
  LossScale& loss_scale() { return loss_scale_; }
  // The whole of what has a parameter's slice, from all ranks' parts; every rank calls it.
  mlx::core::array whole(const weights::Slice& slice, const mlx::core::array& part) const;
  // What the first rank of the stage has, of the first replica, on each of them; the others give anything of
  // its shape.
  mlx::core::array from_first(const mlx::core::array& value) const;
  // What the next step would add to its gradients of those before (error_feedback.h) is left out of it, as it
  // is not saved: who goes on from what is saved does as this one, not as one that did not save here.
  void drop_held_back() { feedback_.clear(); }
  int recomputed_every() const { return options_.recomputed_every; }
  const Ranks& ranks() const { return ranks_; }

 private:
  Sums sums_of(const std::vector<std::vector<Sequence>>& micro_batches, float scale);
  Sums staged_sums(const std::vector<std::vector<Sequence>>& micro_batches, float scale);
  void add_tied(std::vector<mlx::core::array>& gradients) const;
  double total(const mlx::core::array& nll) const;
  std::vector<Sequence> own(const std::vector<Sequence>& sequences) const;
  mlx::core::array summed(std::size_t index, const mlx::core::array& gradient,
                          const std::vector<std::vector<Sequence>>& micro_batches, parallel::InOrder& sums);
  std::vector<mlx::core::array> reduced(std::vector<mlx::core::array> gradients,
                                        const std::vector<std::vector<Sequence>>& micro_batches);
  double activation_bytes(int rows);
  double norm_of(const std::vector<mlx::core::array>& gradients) const;
  void adapt_loss_scale(bool finite);

  std::unique_ptr<Trainable> trainable_;
  Ranks ranks_;
  TrainerOptions options_;
  Optimizer optimizer_;
  LossScale loss_scale_;
  ErrorFeedback feedback_;
  std::optional<Pipeline> pipeline_;  // where there are stages
  // Of the sums over the ranks of `data`, which go on while the backward computes; none: the group's own.
  mlx::core::StreamOrDevice link_;
};

}  // namespace tandem::train
