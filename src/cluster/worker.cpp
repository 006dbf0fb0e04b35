#include "cluster/worker.h"

#include <fmt/format.h>
#include <mlx/device.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <memory>
#include <thread>

#include "base/error.h"
#include "base/limits.h"
#include "base/log.h"
#include "cluster/control_channel.h"
#include "cluster/protocol.h"
#include "cluster/room.h"
#include "cluster/train_worker.h"
#include "engine/scheduler.h"
#include "engine/step.h"
#include "hardware/cores.h"
#include "hardware/machine.h"
#include "kernels/cuda_kernel.h"
#include "kernels/products.h"
#include "kernels/threads.h"
#include "models/adapter.h"
#include "models/families.h"
#include "parallel/broadcast.h"
#include "parallel/messages.h"
#include "parallel/mlx_backends.h"
#include "parallel/tcp_group.h"
#include "weights/checkpoint.h"
#include "weights/random_source.h"
#include "weights/remote_source.h"

namespace tandem::cluster {
namespace {

namespace mx = mlx::core;
using nlohmann::json;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

mx::Device choose_device(const std::string& name) {
  kernels::use_large_cuda_graphs();
  const bool gpu = mx::is_available(mx::Device::gpu);
  if (name == "gpu" && !gpu) {
    throw InputError("--device gpu: MLX finds no GPU on this machine; use --device cpu");
  }
  return name == "cpu" || !gpu ? mx::Device::cpu : mx::Device::gpu;
}

parallel::Endpoint to_endpoint(const Listening& listening) {
  return {listening.addresses, static_cast<std::uint16_t>(listening.port)};
}

struct World {
  mx::distributed::Group group;
  bool tcp;  // the data plane that takes messages
};

World join_group(ControlChannel& channel, const Start& start, const parallel::Plan& plan) {
  parallel::TcpListener listener(start.loopback);
  const auto& endpoint = listener.endpoint();
  // MLX takes the port: a peer must not reach us there first.
  if (start.backend != "auto" && start.backend != "tcp") listener.close();
  const int ranks = plan.world_size();
  channel.send({{"listening", Listening{hardware::host_name(), ::getpid(), endpoint.addresses, endpoint.port,
                                        parallel::automatic_backends(ranks, start.ranks_on_host == ranks)}}});
  const Join join = channel.expect<Join>("join");
  std::vector<parallel::Endpoint> endpoints;
  std::vector<std::vector<std::string>> offers;
  for (const auto& rank : join.ranks) {
    endpoints.push_back(to_endpoint(rank));
    offers.push_back(rank.backends);
  }
  // Stages exchange messages, which is tcp's alone.
  const std::string backend =
      plan.stages.size() > 1 ? "tcp" : parallel::choose_backend(start.backend, offers);
  if (backend != "tcp") {
    listener.close();
    const auto group = parallel::join_mlx_group(backend, start.rank, endpoints);
    if (backend == "nccl") mx::set_default_device({mx::Device::gpu, start.rank});  // a GPU for each rank
    return {group, false};
  }
  return {parallel::join_tcp_group(
              listener, start.rank, endpoints, join.secret,
              {.wire = start.wire == "bfloat16" ? parallel::Wire::bfloat16 : parallel::Wire::float32}),
          true};
}

// Of the ranks that share the stage's matrices. Every rank of `world` calls it.
mx::distributed::Group stage_group(const parallel::Plan& plan, const parallel::Place& place,
                                   const mx::distributed::Group& world) {
  if (place.stages == 1) return world;
  const bool shared = plan.world_size() > place.stages;
  return shared ? world.split(place.stage) : parallel::single_rank_group();
}

struct Model {
  models::ModelConfig config;
  std::unique_ptr<weights::Source> source;
};

Model random_model(const json& shape) {
  auto config = models::parse_config(shape);
  const mx::Dtype dtype = shape.value("torch_dtype", "") == "bfloat16" ? mx::bfloat16 : mx::float16;
  const int bits = config.formats.all ? config.formats.all->bits : 0;
  return {std::move(config), std::make_unique<weights::RandomSource>(dtype, bits)};
}

// From this machine's files, after their slices have gone to the ranks that lack them; or from another rank.
Model open_model(const Start& start, const World& world) {
  if (!start.shape.is_null()) return random_model(start.shape);
  const auto [giver, takers] = weights::supply_of(world.group, weights::is_checkpoint(start.model));
  if (giver < 0) {
    // A folder with all but the weights is a damaged model: let it say so.
    if (std::filesystem::exists(std::filesystem::path(start.model) / "config.json")) {
      const weights::Checkpoint damaged(start.model);
    }
    throw InputError(fmt::format(
        "no rank's machine has the model's files in {}: give this machine a rank (host \"local\"), "
        "or put the folder on one of the others",
        start.model));
  }
  if (!takers.empty() && !world.tcp) {
    throw InputError(
        fmt::format("rank {}'s machine lacks the model's files in {}: put them there, or have them sent by "
                    "--backend tcp",
                    takers.front(), start.model));
  }
  if (std::find(takers.begin(), takers.end(), start.rank) != takers.end()) {
    auto source = std::make_unique<weights::RemoteSource>(world.group, giver);
    auto config = models::parse_config(source->config());
    return {std::move(config), std::move(source)};
  }
  auto config = models::load_config(start.model);
  auto checkpoint = std::make_unique<weights::Checkpoint>(start.model);
  // Before its own part, during which the others would wait without a word.
  if (start.rank == giver && !takers.empty()) weights::give_slices(world.group, *checkpoint, takers);
  return {std::move(config), std::move(checkpoint)};
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

engine::StepRunner load(ControlChannel& channel, const Start& start, const models::ModelConfig& config,
                        weights::Source& source, const parallel::Plan& plan,
                        const mx::distributed::Group& world, const mx::distributed::Group& group,
                        mx::Device device) {
  const parallel::Place place = plan.place(start.rank);
  const parallel::Stage& stage = plan.stages[place.stage];
  const parallel::Range layers{stage.first_layer, stage.end_layer};
  std::vector<double> shares;
  for (const auto& rank : stage.ranks) shares.push_back(rank.share);
  const auto shard =
      parallel::shard_of(config.sizes, shares, place.rank,
                         parallel::expert_split_of(static_cast<int>(stage.ranks.size()), config.divisible()));

  Progress progress;
  const weights::ShardedWeights weights(source, models::shard_rules(config, source, layers), config.formats,
                                        shard, layers.begin, layers.end, [&](std::uint64_t bytes) {
                                          progress.read_bytes += bytes;
                                          channel.send({{"progress", progress}});
                                        });
  progress.total_bytes = weights.bytes();
  if (device == mx::Device::cpu) check_room(weights.bytes());
  auto model = models::make_decoder(config, shard, weights, layers);
  source.finish();
  if (!start.adapter.empty()) models::load_adapter(model, weights, start.adapter);
  const bool gpu = device == mx::Device::gpu;
  const mx::Dtype activations = gpu ? model.layers.front().attention_norm.dtype() : mx::float32;
  channel.send({{"ready", Ready{.weight_bytes = weights.bytes(),
                                .replicated_bytes = weights.replicated_bytes(),
                                .step_bytes = models::step_bytes(model),
                                .resident_bytes = hardware::process_memory().resident_bytes,
                                .device = gpu ? "gpu" : "cpu",
                                .threads = kernels::threads()}}});
  return {std::move(model),
          {group, activations},
          world,
          place,
          start.kv_bits == 8 ? kernels::KeyValueFormat::int8 : kernels::KeyValueFormat::plain};
}

// The rank's model at work, and what it tells the conductor of it.
class Work {
 public:
  // `staged`: the group has pipeline stages, so that ranks are not all at the same step.
  Work(const ControlChannel& channel, engine::StepRunner runner, mx::distributed::Group group, bool staged)
      : channel_(channel), runner_(std::move(runner)), group_(std::move(group)), staged_(staged) {}

  Room room() const { return measure_room(runner_); }

  // Rank 0 tells the others each step before it starts it.
  void tell(const engine::StepPlan& plan) const {
    const auto bytes = engine::encode(plan);
    if (staged_) return parallel::send_to_all(group_, bytes);
    parallel::broadcast(group_, bytes, 0);
  }
  engine::StepPlan hear() const {
    return engine::decode(staged_ ? parallel::receive_from(group_, 0) : parallel::broadcast(group_, {}, 0));
  }

  void start(const engine::StepPlan& plan) {
    if (!plan.released_slots.empty()) report(plan.released_slots.size());
    timed([&] { runner_.start(plan); });
  }
  std::vector<float> finish() {
    std::vector<float> rows;
    timed([&] { rows = runner_.finish(); });
    return rows;
  }
  bool can_finish() const { return runner_.can_finish(); }

 private:
  template <typename Part>
  void timed(Part part) {
    const double start = now_s(), link_start = parallel::link_use(group_).seconds;
    part();
    status_.step_s += now_s() - start;
    status_.link_s += parallel::link_use(group_).seconds - link_start;
  }

  void report(std::size_t ended) {
    const auto memory = hardware::process_memory();
    status_.resident_bytes = memory.resident_bytes;
    status_.peak_bytes = memory.peak_bytes;
    status_.cache_bytes = runner_.cache_bytes();
    status_.ended += ended;
    status_.panel_bytes = kernels::panel_bytes_read();
    channel_.send({{"status", status_}});
  }

  const ControlChannel& channel_;
  engine::StepRunner runner_;
  mx::distributed::Group group_;
  bool staged_;
  Status status_;
};

// Rank 0: takes requests, decides each step, tells the others, sends the events up.
void lead(ControlChannel& channel, Work& work, engine::ServingLimits serving_limits) {
  engine::Scheduler scheduler(serving_limits);
  std::deque<engine::StepPlan> under_way;  // oldest first
  const auto answer = [&](const std::vector<engine::Event>& events) {
    for (const auto& event : events) channel.send(engine::to_json(event));
  };
  while (true) {
    // With nothing to do, wait; but step before the others' patience ends.
    auto message =
        scheduler.idle() && under_way.empty() ? channel.receive(limits::idle_step) : channel.try_receive();
    for (; message; message = channel.try_receive()) {
      answer(scheduler.submit(engine::request_from_json(*message), now_s()));
    }
    engine::StepPlan plan = scheduler.next(now_s());
    bool wait = plan.empty() && !under_way.empty();  // nothing to compute without a step's logits
    if (!wait) {
      work.tell(plan);
      work.start(plan);
      under_way.push_back(std::move(plan));
    }
    for (; wait || work.can_finish(); wait = false) {
      auto rows = work.finish();
      answer(scheduler.finish(under_way.front(), rows, now_s()));
      under_way.pop_front();
    }
  }
}

// Every other rank: does what rank 0 says.
void follow(Work& work) {
  while (true) work.start(work.hear());
}

// The cores that the worker keeps to and the threads that compute, before either MLX or we start any.
void use_cores(const Start& start) {
  hardware::prefer_no_preemption();
  if (!start.cores.empty()) hardware::keep_to_cores(start.cores);
  const int cores = start.cores.empty() ? hardware::physical_cores() / start.ranks_on_host
                                        : static_cast<int>(start.cores.size());
  kernels::set_threads(start.threads > 0 ? start.threads : std::max(1, cores));
}

void serve(ControlChannel& channel) {
  const Start start = channel.expect<Start>("start");
  if (start.version != protocol_version) {
    throw InputError(
        fmt::format("it speaks protocol {}, the conductor {}: install the same version of tandem on every "
                    "machine",
                    protocol_version, start.version));
  }
  log::configure(start.verbosity > 0 ? log::Level::debug : log::Level::warning,
                 fmt::format("rank {}", start.rank));
  use_cores(start);
  const mx::Device device = choose_device(start.device);
  kernels::use_activations(start.activations == "float32" ? kernels::Activations::float32
                                                          : kernels::Activations::automatic);
  mx::set_default_device(device);
  const auto plan = parallel::plan_from_json(start.plan);
  const World world = join_group(channel, start, plan);
  const auto& group = world.group;
  const auto stage = stage_group(plan, plan.place(start.rank), group);  // before messages are under way
  auto [config, source] = open_model(start, world);
  parallel::validate(plan, config.divisible());
  config.formats.fp8_as = start.fp8 == "float32" ? weights::Fp8As::float32
                          : start.fp8 == "8bit"  ? weights::Fp8As::quantised
                                                 : weights::Fp8As::bfloat16;
  if (!start.training.is_null()) return train(channel, start, group, config, *source, device);
  const int stages = static_cast<int>(plan.stages.size());
  Work work(channel, load(channel, start, config, *source, plan, group, stage, device), group, stages > 1);
  channel.expect<json>("go");
  channel.send({{"room", work.room()}});
  parallel::set_timeout(group, stages > 1 ? limits::stage_collective : limits::step_collective);
  if (start.rank == 0) {
    const auto serve = channel.expect<Serve>("serve");
    lead(channel, work,
         {.vocabulary = config.sizes.vocabulary,
          .context = serve.context,
          .stages = stages,
          .cache_tokens = serve.cache_tokens,
          .expanded_from = models::expanded_from(config)});
  } else {
    follow(work);
  }
}

}  // namespace

int worker_main() {
  ::signal(SIGPIPE, SIG_IGN);
  ControlChannel channel;
  const auto fail = [&](const char* kind, const char* message) {
    channel.send({{"failed", Failed{kind, message}}});
    ::_exit(1);  // no destructor of a library may wait for a peer that is gone
  };
  try {
    serve(channel);
  } catch (const InputError& error) {
    fail("input", error.what());
  } catch (const ClusterError& error) {
    fail("cluster", error.what());
  } catch (const std::exception& error) {
    fail("internal", error.what());
  }
  return 1;
}

}  // namespace tandem::cluster
