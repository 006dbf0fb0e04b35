// One forward pass of all ranks: what rank 0 decided (StepPlan) and the running of it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "engine/step_memory.h"
#include "models/decoder.h"
#include "models/kv_cache.h"
#include "models/layers.h"
#include "parallel/plan.h"

namespace tandem::engine {

// In a plan: the token with the highest logit of the sequence's last row in the newest step that gives
// logits, which need not be finished. Only where steps overlap.
inline constexpr int likeliest_token = -1;

// Tokens of one sequence to append to its cache.
struct SequenceStep {
  int slot = 0;             // which cache; a new slot starts empty
  std::vector<int> tokens;  // never empty
  std::vector<int> rows;    // of these tokens, whose logits are wanted; ascending
  bool expanded = false;    // their form in latent attention (models/attention.h: expanded_from)
};

// The same on every rank. Empty: nothing to do, a sign of life.
struct StepPlan {
  std::vector<int> released_slots;  // caches to drop first
  std::vector<SequenceStep> sequences;

  bool empty() const { return released_slots.empty() && sequences.empty(); }
};

// Of the wanted rows of all sequences, in order.
struct StepResult {
  std::vector<float> logits;   // [rows × vocabulary] float32
  std::vector<int> likeliest;  // [rows], where steps overlap: what likeliest_token stands for; else none
};

std::vector<std::uint8_t> encode(const StepPlan& plan);
// ClusterError where the bytes are no plan.
StepPlan decode(std::span<const std::uint8_t> bytes);

// One rank's model, or its stage's part of it, with the caches of the sequences it serves.
//
// Every rank starts the same steps in the same order; rank 0 finishes them in that order, too. With pipeline
// stages, or where steps overlap, it may start further ones before. Both throw what the data plane throws.
class StepRunner {
 public:
  // All layers, on the ranks of `context`.
  StepRunner(models::Decoder model, models::Context context)
      : StepRunner(std::move(model), context, context.group, {}) {}
  // The layers of the stage at `place` among the ranks of `world`; with several stages, a tcp group. A lone
  // rank's steps may overlap: start() hands the work out and does not wait for it, so that a device never
  // waits for its host.
  StepRunner(models::Decoder model, models::Context context, models::Group world, parallel::Place place,
             kernels::KeyValueFormat cache_format = kernels::KeyValueFormat::plain, bool overlaps = false)
      : model_(std::move(model)),
        context_(std::move(context)),
        world_(std::move(world)),
        place_(std::move(place)),
        cache_format_(cache_format),
        overlaps_(overlaps) {}

  // This stage's part of the step.
  void start(const StepPlan& plan);

  // On rank 0, of the oldest step that was started and is not finished. Waits for the last stage.
  StepResult finish();
  // There is one, and finish() need not wait.
  bool can_finish() const;
  bool overlaps() const { return overlaps_; }

  std::size_t cache_bytes() const;
  StepMemory memory() const { return step_memory(model_, context_.activations, cache_format_); }
  int model_context() const { return model_.config.context; }  // tokens

 private:
  struct UnderWay {
    std::uint64_t number;  // of all steps
    std::size_t logits;    // how many are wanted
    std::vector<float> arrived;
    std::vector<mlx::core::array> computing;  // where steps overlap: logits and likeliest, or some rows
  };

  mlx::core::array ids_of(const StepPlan& plan) const;
  bool samples() const { return world_.rank() == 0; }
  bool awaits(const UnderWay& step) const { return step.logits > step.arrived.size(); }
  mlx::core::array take_rows(int tokens) const;
  void give_rows(const mlx::core::array& rows);
  void give_logits(const mlx::core::array& logits);
  UnderWay* step_to_take_in();

  models::Decoder model_;
  models::Context context_;
  models::Group world_;
  parallel::Place place_;
  kernels::KeyValueFormat cache_format_;
  bool overlaps_;
  std::map<int, models::KvCache> caches_;
  // Where steps overlap: the likeliest tokens of the newest step that gives logits, and of each slot which.
  std::optional<mlx::core::array> likeliest_;
  std::map<int, int> likeliest_rows_;
  std::uint64_t started_ = 0;
  std::deque<UnderWay> under_way_;  // on rank 0, oldest first
};

}  // namespace tandem::engine
