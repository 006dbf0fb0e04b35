// A rank's part of the model: from this machine's files, from another rank, or made up.
#pragma once

#include <mlx/device.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "cluster/protocol.h"
#include "models/config.h"
#include "models/decoder.h"
#include "parallel/plan.h"
#include "weights/remote_source.h"
#include "weights/source.h"

namespace tandem::cluster {

struct Model {
  models::ModelConfig config;
  std::shared_ptr<weights::Source> source;
  std::optional<weights::Giving> giving;  // to the ranks that lack the files
};

// Every rank of `world` calls it. `messages`: its data plane takes them. `shards`: where slices are kept.
// InputError where no rank has the files, they are damaged, or they cannot be sent.
Model open_model(const Start& start, const mlx::core::distributed::Group& world, bool messages,
                 const std::filesystem::path& shards);

using OnProgress = std::function<void(const Progress&)>;

// Tells how far a load is: every limits::progress_every at most, and of its start and its end.
class LoadTeller {
 public:
  explicit LoadTeller(OnProgress on_progress) : on_progress_(std::move(on_progress)) {}

  void start(std::uint64_t total_bytes);
  void add(std::uint64_t bytes);
  void finish();
  const Progress& progress() const { return progress_; }

 private:
  void tell();

  OnProgress on_progress_;
  Progress progress_;
  std::chrono::steady_clock::time_point told_;
};

struct Part {
  models::Decoder decoder;
  Ready ready;
};

// Reads this rank's part and returns when it is there and every other rank has got what it gets from this
// one. `on_progress` hears of it as LoadTeller tells.
// InputError where a tensor is not as config.json has it, or the machine has too little memory.
// An adapter is complete after complete_adapter(). `group`: the ranks that share matrices with this one.
Part load_part(const Start& start, Model& model, const parallel::Plan& plan, const models::Group& group,
               mlx::core::Device device, const OnProgress& on_progress);

}  // namespace tandem::cluster
