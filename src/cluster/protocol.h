// What the conductor and a worker say to each other, one JSON object a line, {name: {…}}:
//
//   conductor → worker   start, join, go, serve (rank 0), then engine requests (rank 0)
//   worker → conductor   listening, progress, ready, room, status, then engine events (rank 0); failed at any
//   time, and alive every few seconds
//
// A group that trains knows no go, room and serve: once all are ready, rank 0 is sent one {"train": order}
// after the other (cluster/train_worker.h), and answers each with {"trained": …}.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "parallel/tcp_group.h"

namespace tandem::cluster {

inline constexpr int protocol_version = 10;

// How the group trains (train/). The ranks of each of the plan's stages are `replicas` groups, one after the
// other, each with all of the stage's layers.
struct Training {
  static constexpr int by_memory = -1;

  std::string method = "lora";  // or dora, full
  int replicas = 1;
  std::vector<double> shares;  // of each replica in every batch; none: equal ones
  bool sharded = false;        // each rank holds a part of its replica (train/sharded_model.h)
  int lora_rank = 8;
  float lora_scale = 20;
  int lora_layers = 16;
  std::vector<std::string> lora_keys;
  std::uint64_t seed = 0;
  std::string optimizer = "adamw";
  int optimizer_bits = 32;
  float beta1 = 0.9F, beta2 = 0.999F, weight_decay = 0.01F;
  float clip = 0;
  float balance_rate = 0;    // train/optimizer.h
  float balance_loss = 0;    // models/layers.h: Context
  int recomputed_every = 0;  // of so many layers one (train/loss.h); by_memory: as free memory asks for
  // Of micro-batches, all ranks' together: the most tokens, those of the longest text, and texts.
  int most_rows = 0, longest_row = 0, texts = 1;
  std::string dtype = "auto";  // of activations, and of the weights they meet: float32, bfloat16 or float16
  bool from_scratch = false;   // from first weights of Start::shape (weights/initial_source.h)
};

// Which model, which part of it, on which device.
struct Start {
  int version = protocol_version;
  int rank = 0;
  nlohmann::json plan;
  std::string model;                 // a folder on the worker's machine
  nlohmann::json shape;              // a config.json to make random weights for in place of `model`, or null
  bool cache_shards = false;         // slices from another rank are kept on the worker's machine
  std::string device;                // auto, cpu or gpu
  std::string backend = "auto";      // parallel/mlx_backends.h
  std::string fp8 = "bfloat16";      // or float32, 8bit: weights/formats.h, Fp8As
  std::string wire = "float32";      // or bfloat16: parallel/tcp_group.h, Wire
  std::string activations = "auto";  // auto or float32: kernels/products.h, Activations
  int kv_bits = 16;                  // or 8: kernels/key_values.h, KeyValueFormat
  std::string adapter;               // a folder with low-rank adapters, or empty
  nlohmann::json training;           // Training, in place of serving, or null
  int threads = 0;         // 0: the physical cores of the worker's machine, shared with its other ranks
  int ranks_on_host = 1;   // this one among them
  std::vector<int> cores;  // that the worker keeps to; empty: any
  bool loopback = false;
  int verbosity = 0;
};

// The worker waits for its peers there.
struct Listening {
  std::string host;
  std::int64_t pid = 0;
  std::vector<std::string> addresses;
  int port = 0;
  std::vector<std::string> backends;  // of MLX that `auto` may take there
};

// Every rank's Listening, and the secret of this start of the group.
struct Join {
  std::vector<Listening> ranks;
  std::string secret;
};

struct Progress {
  std::uint64_t read_bytes = 0;
  std::uint64_t total_bytes = 0;
};

// The rank's part is in memory.
struct Ready {
  std::uint64_t weight_bytes = 0;
  std::uint64_t replicated_bytes = 0;  // of these, what every rank holds
  std::uint64_t step_bytes = 0;        // of these, what the step of one token reads
  std::uint64_t resident_bytes = 0;
  std::string device;
  int threads = 1;
  std::uint64_t received_bytes = 0;  // of the weights, from another rank
  double load_s = 0;                 // from the first slice to the last
};

// What is free once every rank's part is in memory, and what the cache takes of it, bytes (engine/
// step_memory.h). The answer to "go".
struct Room {
  std::string memory = "main";  // which of its machine's: the main memory, or a GPU's own
  std::uint64_t free_bytes = 0;
  std::uint64_t total_bytes = 0;
  std::uint64_t block_bytes = 0;
  std::uint64_t buffer_bytes = 0;
  std::uint64_t position_bytes = 0;
  int model_context = 0;  // tokens
};

// The group's limits (engine/scheduler.h, ServingLimits).
struct Serve {
  int context = 0;
  std::int64_t cache_tokens = 0;
};

// Sent when requests have ended.
struct Status {
  std::uint64_t resident_bytes = 0;
  std::uint64_t peak_bytes = 0;
  std::uint64_t cache_bytes = 0;  // with the ended requests' own
  std::uint64_t ended = 0;        // requests, since the start
  double step_s = 0;              // in steps, since the start
  double link_s = 0;              // of these, in the steps' collectives
  std::uint64_t panel_bytes = 0;  // of packed weights that products read, since the start; 0 on a GPU
};

// The worker ends after it. `kind`: "input" (the user can mend it), "cluster" (another rank or a link is
// gone), "internal".
struct Failed {
  std::string kind;
  std::string message;
};

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Training, method, replicas, shares, sharded, lora_rank, lora_scale,
                                   lora_layers, lora_keys, seed, optimizer, optimizer_bits, beta1, beta2,
                                   weight_decay, clip, balance_rate, balance_loss, recomputed_every,
                                   most_rows, longest_row, texts, dtype, from_scratch)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Start, version, rank, plan, model, shape, cache_shards, device, backend,
                                   fp8, wire, activations, kv_bits, adapter, training, threads, ranks_on_host,
                                   cores, loopback, verbosity)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Listening, host, pid, addresses, port, backends)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Join, ranks, secret)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Progress, read_bytes, total_bytes)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Ready, weight_bytes, replicated_bytes, step_bytes, resident_bytes, device,
                                   threads, received_bytes, load_s)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Room, memory, free_bytes, total_bytes, block_bytes, buffer_bytes,
                                   position_bytes, model_context)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Serve, context, cache_tokens)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Status, resident_bytes, peak_bytes, cache_bytes, ended, step_s, link_s,
                                   panel_bytes)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Failed, kind, message)

}  // namespace tandem::cluster
