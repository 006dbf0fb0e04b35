#include "cluster/train_worker.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <mlx/transforms.h>

#include <chrono>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/limits.h"
#include "cluster/room.h"
#include "hardware/memory.h"
#include "kernels/threads.h"
#include "parallel/broadcast.h"
#include "parallel/collectives.h"
#include "parallel/tcp_group.h"
#include "train/full_model.h"
#include "train/lora.h"
#include "train/save.h"
#include "train/sharded_model.h"

namespace tandem::cluster {
namespace {

namespace mx = mlx::core;
using nlohmann::json;
using std::chrono::milliseconds;

constexpr float first_loss_scale = 1 << 16;

mx::Dtype activations_of(const std::string& dtype, mx::Device device) {
  if (dtype == "auto") return device == mx::Device::gpu ? mx::bfloat16 : mx::float32;
  return dtype == "bfloat16" ? mx::bfloat16 : dtype == "float16" ? mx::float16 : mx::float32;
}

// JSON has neither NaN nor infinity.
json finite_or_null(double value) { return std::isfinite(value) ? json(value) : json(); }

// This rank's groups: those with which it shares matrices, and those with the same part of the other models.
train::Ranks ranks_of(const TrainingPlace& here, const Training& training, mx::Dtype activations) {
  const int replicas = training.replicas, sharers = here.stage.size() / replicas;
  const auto part = [&](int size, int color) {
    if (size == here.stage.size()) return here.stage;
    return size > 1 ? here.stage.split(color) : parallel::single_rank_group();
  };
  const auto stage = part(sharers, here.place.rank / sharers);
  const auto data = part(replicas, here.place.rank % sharers);
  auto shares = training.shares;
  shares.resize(static_cast<std::size_t>(replicas), 1);
  return {here.world, {stage, activations}, data, shares, here.place, training.sharded};
}

// InputError where a product that is to be adapted is in no layer of any stage.
void check_keys(const std::vector<std::string>& keys, const train::LoraModel& model,
                const mx::distributed::Group& world) {
  for (const auto& key : keys) {
    const mx::array here(model.products().contains(key) ? 1.0F : 0.0F);
    if (parallel::sum(here, world).item<float>() > 0) continue;
    throw InputError(
        fmt::format("there is no \"{}\" to adapt: a layer has {}", key, fmt::join(model.products(), ", ")));
  }
}

class TrainWork {
 public:
  TrainWork(const mx::distributed::Group& world, train::Trainer trainer)
      : world_(world), trainer_(std::move(trainer)) {}

  // The answer to an order; every rank carries it out.
  json carry_out(const json& order) {
    if (order.contains("step")) return step(order["step"]);
    if (order.contains("evaluate")) {
      const auto result = trainer_.evaluate(sequences_from_json(order["evaluate"]["sequences"]));
      return {{"sum_nll", finite_or_null(result.sum_nll)}, {"tokens", result.tokens}};
    }
    if (order.contains("save")) {
      train::save_parameters(trainer_, file_of(order["save"]), order["save"]["dtype"]);
      return {{"file", order["save"]["file"]}};
    }
    if (order.contains("keep")) {
      train::save_state(trainer_, file_of(order["keep"]));
      return {{"file", order["keep"]["file"]}};
    }
    if (order.contains("load")) {
      train::load_parameters(trainer_, file_of(order["load"]));
      return {{"file", order["load"]["file"]}};
    }
    if (order.contains("restore")) {
      train::restore_state(trainer_, file_of(order["restore"]));
      return {{"file", order["restore"]["file"]}};
    }
    return json::object();
  }

 private:
  json step(const json& order) {
    std::vector<std::vector<train::Sequence>> batches;
    for (const auto& batch : order["batches"]) batches.push_back(sequences_from_json(batch));
    const auto start = std::chrono::steady_clock::now();
    const double link_start = parallel::link_use(world_).seconds;
    const auto result = trainer_.step(batches, order["learning_rate"].get<double>());
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    return {{"sum_nll", finite_or_null(result.sum_nll)},
            {"tokens", result.tokens},
            {"gradient_norm", finite_or_null(result.gradient_norm)},
            {"skipped", result.skipped},
            {"seconds", time.count()},
            {"recomputed_every", trainer_.recomputed_every()},
            {"link_s", parallel::link_use(world_).seconds - link_start},
            {"peak_bytes", rank_memory().peak_bytes}};
  }

  // Rank 0's file.
  std::optional<std::filesystem::path> file_of(const json& order) const {
    if (world_.rank() != 0) return std::nullopt;
    return order["file"].get<std::string>();
  }

  const mx::distributed::Group& world_;
  train::Trainer trainer_;
};

// The most tokens that this rank may have under way in a step, by whole texts.
int rows_of(const Training& training, const train::Ranks& ranks) {
  double rows = training.most_rows, texts = training.texts;
  const auto take = [&](double share) {
    rows = std::min(rows, rows * share + training.longest_row);
    texts = std::min(texts, std::ceil(texts * share) + 1);
  };
  if (ranks.data.size() > 1)
    take(ranks.shares[ranks.data.rank()] / std::accumulate(ranks.shares.begin(), ranks.shares.end(), 0.0));
  const int stages = ranks.place.stages;
  if (stages > 1) take(std::min(1.0, stages / std::min(texts, 1.0 * train::parts_a_stage * stages)));
  return static_cast<int>(std::ceil(rows));
}

std::unique_ptr<train::Trainable> load(const Training& training, const Model& model,
                                       const parallel::Shard& shard, const parallel::Range& layers,
                                       const train::Ranks& ranks, LoadTeller& teller) {
  const auto& config = model.config;
  const mx::Dtype activations = ranks.stage.activations;
  weights::ShardedWeights weights(*model.source, models::shard_rules(config, *model.source, layers),
                                  config.formats, shard, layers.begin, layers.end,
                                  [&](std::uint64_t bytes) { teller.add(bytes); });
  teller.start(weights.bytes());
  if (training.sharded)
    return std::make_unique<train::ShardedModel>(config, shard, std::move(weights), activations,
                                                 training.balance_rate > 0, ranks.data);
  if (training.method == "full")
    return std::make_unique<train::FullModel>(config, shard, layers, std::move(weights), activations,
                                              training.balance_rate > 0);
  auto base = models::make_decoder(config, shard, weights, layers);
  auto adapted = std::make_unique<train::LoraModel>(std::move(base), layers.begin, weights, ranks.stage.group,
                                                    train::LoraOptions{.rank = training.lora_rank,
                                                                       .scale = training.lora_scale,
                                                                       .dora = training.method == "dora",
                                                                       .layers = training.lora_layers,
                                                                       .keys = training.lora_keys,
                                                                       .seed = training.seed,
                                                                       .activations = activations});
  return adapted;
}

parallel::Shard shard_of(const TrainingPlace& here, const Training& training, const models::Group& sharers,
                         const models::ModelConfig& config) {
  const auto& planned = here.plan.stages[here.place.stage].ranks;
  std::vector<double> shares;
  for (int i = 0; i < sharers.size(); ++i) shares.push_back(training.replicas > 1 ? 1.0 : planned[i].share);
  return parallel::shard_of(config.sizes, shares, sharers.rank(),
                            parallel::expert_split_of(sharers.size(), config.divisible()));
}

train::TrainerOptions options_of(const Training& training, mx::Dtype activations, bool narrow_wire) {
  return {.optimizer = {.name = training.optimizer,
                        .beta1 = training.beta1,
                        .beta2 = training.beta2,
                        .weight_decay = training.weight_decay,
                        .bits = training.optimizer_bits,
                        .balance_rate = training.balance_rate},
          .clip = training.clip,
          .recomputed_every = std::max(0, training.recomputed_every),
          .loss_scale = activations == mx::float16 ? first_loss_scale : 0,
          .error_feedback = narrow_wire};
}

// Rank 0 hears them of the conductor.
[[noreturn]] void carry_out_orders(ControlChannel& channel, const mx::distributed::Group& world,
                                   TrainWork& work) {
  while (true) {
    json order = json::object();
    if (world.rank() == 0) {
      // With nothing to do, wait; but speak before the others' patience ends.
      if (const auto message = channel.receive(limits::idle_step)) order = message->at("train");
    }
    order = json::from_cbor(parallel::broadcast(world, json::to_cbor(order), 0));
    // Rank 0 writes or reads everything, one rank's after the other's, and the others may wait for it until
    // the next order.
    const bool by_file = order.contains("save") || order.contains("keep") || order.contains("load") ||
                         order.contains("restore");
    parallel::set_timeout(world, by_file ? milliseconds(limits::kept_slices) : limits::train_collective);
    const json answer = work.carry_out(order);
    if (world.rank() == 0 && !order.empty()) channel.send({{"trained", answer}});
  }
}

}  // namespace

json sequences_to_json(const std::vector<train::Sequence>& sequences) {
  json list = json::array();
  for (const auto& one : sequences) {
    json ids = json::array({one.loss_from});
    for (const int id : one.ids) ids.push_back(id);
    list.push_back(std::move(ids));
  }
  return list;
}

std::vector<train::Sequence> sequences_from_json(const json& list) {
  std::vector<train::Sequence> sequences;
  for (const auto& one : list) {
    auto ids = one.get<std::vector<int>>();
    const int loss_from = ids.front();
    ids.erase(ids.begin());
    sequences.push_back({std::move(ids), loss_from});
  }
  return sequences;
}

void train(ControlChannel& channel, const Start& start, const TrainingPlace& here, Model& model,
           mx::Device device) {
  const auto& world = here.world;
  const auto& config = model.config;
  const auto training = start.training.get<Training>();
  const bool gpu = device == mx::Device::gpu;
  if (!gpu) hardware::keep_freed_memory();
  const mx::Dtype activations = activations_of(training.dtype, device);
  auto ranks = ranks_of(here, training, activations);
  // Each of the ranks that share a router adds a part of its gradient.
  ranks.stage.balance_loss = training.balance_loss / static_cast<float>(ranks.stage.group.size());
  const auto shard = shard_of(here, training, ranks.stage.group, config);
  const auto& planned = here.plan.stages[here.place.stage];
  LoadTeller teller([&](const Progress& progress) { channel.send({{"progress", progress}}); });
  const auto begin = std::chrono::steady_clock::now();
  auto trainable = load(training, model, shard, {planned.first_layer, planned.end_layer}, ranks, teller);
  auto* lora = dynamic_cast<train::LoraModel*>(trainable.get());
  model.source->finish();
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  teller.finish();
  if (model.giving) model.giving->wait();
  train::Trainer trainer(
      std::move(trainable), std::move(ranks),
      options_of(training, activations, /*narrow_wire=*/here.tcp && start.wire == "bfloat16"));
  channel.send({{"ready", Ready{.weight_bytes = teller.progress().total_bytes,
                                .resident_bytes = rank_memory().resident_bytes,
                                .device = gpu ? "gpu" : "cpu",
                                .threads = kernels::threads(),
                                .received_bytes = model.source->received_bytes(),
                                .load_s = time.count()}}});
  parallel::set_timeout(world, limits::train_collective);
  // Now that nothing else is under way.
  if (lora != nullptr) {
    check_keys(training.lora_keys, *lora, world);
    lora->start_magnitudes();
  }
  if (training.recomputed_every == Training::by_memory) {
    mx::eval(parallel::sum(mx::array(1.0F), world));  // all have loaded
    trainer.recompute_by_memory(rows_of(training, trainer.ranks()), training.longest_row,
                                free_memory(start.ranks_on_host));
  }
  TrainWork work(world, std::move(trainer));
  carry_out_orders(channel, world, work);
}

}  // namespace tandem::cluster
