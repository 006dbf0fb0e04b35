// One rank at training.
#pragma once

#include <mlx/device.h>
#include <mlx/distributed/distributed.h>

#include "cluster/control_channel.h"
#include "cluster/loading.h"
#include "cluster/protocol.h"

namespace tandem::cluster {

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
