#include "cluster/loading.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/limits.h"
#include "cluster/room.h"
#include "kernels/threads.h"
#include "models/adapter.h"
#include "models/families.h"
#include "weights/checkpoint.h"
#include "weights/checksum.h"
#include "weights/initial_source.h"
#include "weights/random_source.h"
#include "weights/slice_cache.h"

namespace tandem::cluster {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;
using std::chrono::steady_clock;

Model random_model(const Start& start) {
  const auto& shape = start.shape;
  auto config = models::parse_config(shape);
  if (!start.training.is_null() && start.training.at("from_scratch")) {
    const std::uint64_t seed = start.training.at("seed");
    const double deviation = shape.value("initializer_range", 0.02);
    return {std::move(config), std::make_shared<weights::InitialSource>(deviation, seed), {}};
  }
  const mx::Dtype dtype = shape.value("torch_dtype", "") == "bfloat16" ? mx::bfloat16 : mx::float16;
  const int bits = config.formats.all ? config.formats.all->bits : 0;
  return {std::move(config), std::make_shared<weights::RandomSource>(dtype, bits), {}};
}

Model received_model(const Start& start, const mx::distributed::Group& world, int giver,
                     const fs::path& shards) {
  auto remote = std::make_unique<weights::RemoteSource>(world, giver);
  auto config = models::parse_config(remote->config());
  if (!start.cache_shards) return {std::move(config), std::move(remote), {}};
  const auto folder = shards / weights::sha256_of(start.model).substr(0, 16);
  return {std::move(config), std::make_shared<weights::SliceCache>(std::move(remote), folder), {}};
}

// InputError where the weights cannot fit into this machine at all.
void check_room(std::uint64_t weight_bytes) {
  constexpr double gigabyte = 1e9;
  const std::uint64_t memory = hardware::machine_memory_bytes();
  if (memory == 0 || weight_bytes <= memory) return;
  throw InputError(
      fmt::format("this rank's weights take {:.1f} GB, but its machine has {:.1f} GB of memory: give it a "
                  "smaller share, or take more machines",
                  static_cast<double>(weight_bytes) / gigabyte, static_cast<double>(memory) / gigabyte));
}

}  // namespace

Model open_model(const Start& start, const mx::distributed::Group& world, bool messages,
                 const fs::path& shards) {
  if (!start.shape.is_null()) return random_model(start);
  const auto [giver, takers] = weights::supply_of(world, weights::is_checkpoint(start.model));
  if (giver < 0) {
    // A folder with all but the weights is a damaged model: let it say so.
    if (fs::exists(fs::path(start.model) / "config.json")) {
      const weights::Checkpoint damaged(start.model);
    }
    throw InputError(fmt::format(
        "no rank's machine has the model's files in {}: give this machine a rank (host \"local\"), "
        "or put the folder on one of the others",
        start.model));
  }
  if (!takers.empty() && !messages) {
    throw InputError(
        fmt::format("rank {}'s machine lacks the model's files in {}: put them there, or have them sent by "
                    "--backend tcp",
                    takers.front(), start.model));
  }
  if (std::find(takers.begin(), takers.end(), start.rank) != takers.end())
    return received_model(start, world, giver, shards);
  auto checkpoint = std::make_shared<weights::Checkpoint>(start.model);
  Model model{models::load_config(start.model), checkpoint, {}};
  if (start.rank == giver && !takers.empty()) model.giving.emplace(world, checkpoint, takers);
  return model;
}

void LoadTeller::start(std::uint64_t total_bytes) {
  progress_.total_bytes = total_bytes;
  tell();
}

void LoadTeller::add(std::uint64_t bytes) {
  progress_.read_bytes += bytes;
  if (steady_clock::now() - told_ >= limits::progress_every) tell();
}

void LoadTeller::finish() {
  progress_.read_bytes = progress_.total_bytes;
  tell();
}

void LoadTeller::tell() {
  told_ = steady_clock::now();
  on_progress_(progress_);
}

Part load_part(const Start& start, Model& model, const parallel::Plan& plan, const models::Group& group,
               mx::Device device, const OnProgress& on_progress) {
  const auto& config = model.config;
  const parallel::Place place = plan.place(start.rank);
  const parallel::Stage& stage = plan.stages[place.stage];
  const parallel::Range layers{stage.first_layer, stage.end_layer};
  std::vector<double> shares;
  for (const auto& rank : stage.ranks) shares.push_back(rank.share);
  const auto shard =
      parallel::shard_of(config.sizes, shares, place.rank,
                         parallel::expert_split_of(static_cast<int>(stage.ranks.size()), config.divisible()));

  LoadTeller teller(on_progress);
  const auto begin = steady_clock::now();
  const weights::ShardedWeights weights(*model.source, models::shard_rules(config, *model.source, layers),
                                        config.formats, shard, layers.begin, layers.end,
                                        [&](std::uint64_t bytes) { teller.add(bytes); });
  teller.start(weights.bytes());
  if (device == mx::Device::cpu) check_room(weights.bytes());
  auto decoder = models::make_decoder(config, shard, weights, layers);
  model.source->finish();
  if (!start.adapter.empty()) models::load_adapter(decoder, weights, start.adapter, group);
  const std::chrono::duration<double> time = steady_clock::now() - begin;
  teller.finish();
  if (model.giving) model.giving->wait();
  const Ready ready{.weight_bytes = weights.bytes(),
                    .replicated_bytes = weights.replicated_bytes(),
                    .step_bytes = models::step_bytes(decoder),
                    .resident_bytes = rank_memory().resident_bytes,
                    .device = device == mx::Device::gpu ? "gpu" : "cpu",
                    .threads = kernels::threads(),
                    .received_bytes = model.source->received_bytes(),
                    .load_s = time.count()};
  return {std::move(decoder), ready};
}

}  // namespace tandem::cluster
