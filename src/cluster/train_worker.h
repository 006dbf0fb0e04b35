// One rank at training.
#pragma once

#include <mlx/device.h>
#include <mlx/distributed/distributed.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "cluster/control_channel.h"
#include "cluster/loading.h"
#include "cluster/protocol.h"
#include "train/loss.h"

namespace tandem::cluster {

// Sequences as orders have them: [[loss_from, id, …], …].
nlohmann::json sequences_to_json(const std::vector<train::Sequence>& sequences);
std::vector<train::Sequence> sequences_from_json(const nlohmann::json& list);

// Loads this rank's part and carries rank 0's orders out, for ever. Orders, and what rank 0 answers:
//   {"step": {"batches": [[[loss_from, id, …], …], …], "learning_rate"}}
//       → {"sum_nll", "tokens", "gradient_norm", "skipped", "seconds", "link_s", "peak_bytes"}
//   {"evaluate": {"sequences": [[loss_from, id, …], …]}} → {"sum_nll", "tokens"}
//   {"save": {"file", "dtype"}} → {"file"}: rank 0 writes all parameters
//   {"keep": {"file"}}, {"restore": {"file"}} → {"file"}: rank 0 writes or reads what the next step depends
//   on
void train(ControlChannel& channel, const Start& start, const mlx::core::distributed::Group& world,
           Model& model, mlx::core::Device device);

}  // namespace tandem::cluster
