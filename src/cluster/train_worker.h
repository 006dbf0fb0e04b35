// One rank at training.
#pragma once

#include <mlx/device.h>
#include <mlx/distributed/distributed.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "cluster/control_channel.h"
#include "cluster/loading.h"
#include "cluster/protocol.h"
#include "parallel/plan.h"
#include "train/loss.h"

namespace tandem::cluster {

// Sequences as orders have them: [[loss_from, id, …], …].
nlohmann::json sequences_to_json(const std::vector<train::Sequence>& sequences);
std::vector<train::Sequence> sequences_from_json(const nlohmann::json& list);

// Where this rank stands.
struct TrainingPlace {
  mlx::core::distributed::Group world, stage;  // all ranks, and those of this one's stage
  bool tcp;                                    // the data plane, which Start::wire is for
  const parallel::Plan& plan;
  parallel::Place place;
};

// Loads this rank's part and carries rank 0's orders out, for ever. Orders, and what rank 0 answers:
//   {"step": {"batches": [[[loss_from, id, …], …], …], "learning_rate"}}
//       → {"sum_nll", "tokens", "gradient_norm", "skipped", "seconds", "recomputed_every", "link_s",
//       "peak_bytes"}
//   {"evaluate": {"sequences": [[loss_from, id, …], …]}} → {"sum_nll", "tokens"}; null where it is not finite
//   {"save": {"file", "dtype"}} → {"file"}: rank 0 writes all parameters
//   {"keep": {"file"}}, {"restore": {"file"}} → {"file"}: rank 0 writes or reads what the next step depends
//   on
void train(ControlChannel& channel, const Start& start, const TrainingPlace& here, Model& model,
           mlx::core::Device device);

}  // namespace tandem::cluster
