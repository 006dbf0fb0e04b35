// One forward pass of all ranks: what rank 0 decided (StepPlan) and the running of it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <vector>

#include "engine/step_memory.h"
#include "models/decoder.h"
#include "models/kv_cache.h"
#include "models/layers.h"
#include "parallel/plan.h"

namespace tandem::engine {

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

std::vector<std::uint8_t> encode(const StepPlan& plan);
// ClusterError where the bytes are no plan.
StepPlan decode(std::span<const std::uint8_t> bytes);

// One rank's model, or its stage's part of it, with the caches of the sequences it serves.
//
// Every rank starts the same steps in the same order; rank 0 finishes them in that order, too, and with
// pipeline stages it may start further ones before. Both throw what the data plane throws.
class StepRunner {
 public:
  // All layers, on the ranks of `context`.
  StepRunner(models::Decoder model, models::Context context)
      : StepRunner(std::move(model), context, context.group, {}) {}
  // The layers of the stage at `place` among the ranks of `world`; with several stages, a tcp group.
  StepRunner(models::Decoder model, models::Context context, models::Group world, parallel::Place place,
             kernels::KeyValueFormat cache_format = kernels::KeyValueFormat::plain)
      : model_(std::move(model)),
        context_(std::move(context)),
        world_(std::move(world)),
        place_(std::move(place)),
        cache_format_(cache_format) {}

  // This stage's part of the step.
  void start(const StepPlan& plan);

  // On rank 0, of the oldest step that was started and is not finished: the wanted rows' logits of all
  // sequences, in order, [rows × vocabulary] float32. Waits for the last stage.
  std::vector<float> finish();
  // There is one, and finish() need not wait.
  bool can_finish() const;

  std::size_t cache_bytes() const;
  StepMemory memory() const { return step_memory(model_, context_.activations, cache_format_); }
  int model_context() const { return model_.config.context; }  // tokens

 private:
  struct UnderWay {
    std::uint64_t number;  // of all steps
    std::size_t logits;    // how many are wanted
    std::vector<float> arrived;
  };

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
  std::map<int, models::KvCache> caches_;
  std::uint64_t started_ = 0;
  std::deque<UnderWay> under_way_;  // on rank 0, oldest first
};

}  // namespace tandem::engine
