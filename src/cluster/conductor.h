// The conductor: starts the workers of a plan, loads the model on them, passes requests in and events out. It
// holds no tensor and no device, so nothing a model does can crash it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/group_logic.h"
#include "cluster/protocol.h"
#include "engine/request.h"
#include "parallel/plan.h"

namespace tandem::cluster {

struct ConductorOptions {
  std::string model;     // a folder, the same on every machine
  nlohmann::json shape;  // a config.json to make random weights for in place of `model`; null: none
  parallel::Plan plan;
  bool cache_shards = false;  // slices from another rank are kept on the disk of each that lacks the files
  std::string device = "auto";
  std::string backend = "auto";
  std::string wire = "float32";
  std::string fp8 = "bfloat16";
  std::string activations = "auto";
  ContextWish context;
  int kv_bits = 16;                  // or 8
  std::string adapter;               // a folder, the same on every machine; empty: none
  std::optional<Training> training;  // a group that trains and serves no request
  int threads = 0;                   // of each worker; 0: its machine's physical cores over its ranks there
  std::vector<std::vector<int>> cores;    // that each rank on this machine keeps to; empty: any
  std::filesystem::path program;          // this program, for local workers
  std::string remote_program = "tandem";  // on the other machines
  int verbosity = 0;
  std::function<void()> on_wait;  // called again and again until all are ready; what it throws ends the start
};

// Each rank's bytes read and to be read, called while the model loads.
using OnLoading = std::function<void(const std::vector<Progress>&)>;
// Called on the conductor's thread; must not call the conductor's destructor. While it waits, no event of any
// request comes.
using OnEvent = std::function<void(const engine::Event&)>;
// Called once, on the conductor's thread, with what was lost.
using OnLost = std::function<void(const std::string&)>;

// The command of one worker: `program worker`, or the same through ssh.
std::vector<std::string> worker_command(const ConductorOptions& options, const std::string& host);

// What each rank is told to start with. `cores` has one entry for each rank on this machine, or none.
std::vector<Start> starts(const ConductorOptions& options);

class Conductor {
 public:
  // Starts and loads; returns when every rank is ready. InputError or ClusterError otherwise.
  explicit Conductor(ConductorOptions options, const OnLoading& on_loading = {});
  // Ends every worker.
  ~Conductor();
  Conductor(const Conductor&) = delete;
  Conductor& operator=(const Conductor&) = delete;

  // Hands the request (its id is set here) to rank 0; events follow until a DoneEvent or a RefusedEvent, or
  // until the group is lost: then `on_lost`, once. Returns the id.
  std::uint64_t submit(engine::Request request, OnEvent on_event, OnLost on_lost);
  void cancel(std::uint64_t id);

  // Of a group that trains: has rank 0 carry an order out (cluster/train_worker.h) and waits for its answer.
  // ClusterError where the group is lost, InputError where the order fails by what the user can mend. Calls
  // `on_wait` now and then, which may throw to wait no longer.
  nlohmann::json carry_out(const nlohmann::json& order, const std::function<void()>& on_wait = {});

  const Capacity& capacity() const;
  // The ranks as they are now.
  std::vector<RankState> ranks() const;
  // Called (at once, if it has happened) when a rank or link is lost; the message says which. No request is
  // served after that.
  void on_lost(OnLost callback);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem::cluster
