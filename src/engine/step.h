// One forward pass of all ranks: what rank 0 decided (StepPlan) and the running of it.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "models/decoder.h"
#include "models/kv_cache.h"
#include "models/layers.h"

namespace tandem::engine {

// Tokens of one sequence to append to its cache.
struct SequenceStep {
  int slot = 0;             // which cache; a new slot starts empty
  std::vector<int> tokens;  // never empty
  std::vector<int> rows;    // of these tokens, whose logits are wanted; ascending
};

// The same on every rank. Empty: nothing to do, a sign of life.
struct StepPlan {
  std::vector<int> released_slots;  // caches to drop first
  std::vector<SequenceStep> sequences;
};

std::vector<std::uint8_t> encode(const StepPlan& plan);
// ClusterError where the bytes are no plan.
StepPlan decode(std::span<const std::uint8_t> bytes);

// One rank's model with the caches of the sequences it serves.
class StepRunner {
 public:
  StepRunner(models::Decoder model, models::Context context)
      : model_(std::move(model)), context_(std::move(context)) {}

  // The wanted rows' logits of all sequences, in order, [rows × vocabulary] float32; the same on every rank.
  // Throws what the data plane throws.
  std::vector<float> run(const StepPlan& plan);

  std::size_t cache_bytes() const;

 private:
  models::Decoder model_;
  models::Context context_;
  std::map<int, models::KvCache> caches_;
};

}  // namespace tandem::engine
