#include "cluster/worker.h"

#include <fmt/format.h>
#include <mlx/device.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <iterator>
#include <thread>

#include "base/error.h"
#include "base/limits.h"
#include "base/log.h"
#include "cluster/control_channel.h"
#include "cluster/loading.h"
#include "cluster/protocol.h"
#include "cluster/room.h"
#include "cluster/train_worker.h"
#include "engine/scheduler.h"
#include "engine/step.h"
#include "hardware/cores.h"
#include "hardware/machine.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_kernel.h"
#include "kernels/products.h"
#include "kernels/threads.h"
#include "models/adapter.h"
#include "parallel/broadcast.h"
#include "parallel/messages.h"
#include "parallel/mlx_backends.h"
#include "parallel/tcp_group.h"

namespace tandem::cluster {
namespace {

namespace mx = mlx::core;
using nlohmann::json;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

mx::Device choose_device(const Start& start) {
  const std::string& name = start.device;
  if (start.ranks_on_host > 1 && name != "cpu")
    kernels::use_one_cuda_gpu(start.rank, hardware::nvidia_gpus());
  if (start.training.is_null()) {
    kernels::use_large_cuda_graphs();
  } else {
    kernels::use_large_cuda_graphs(limits::training_graph_bytes);
  }
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
  channel.send(
      {{"listening", Listening{hardware::host_name(), ::getpid(), endpoint.addresses, endpoint.port,
                               parallel::automatic_backends(
                                   start.ranks_on_host == ranks ? hardware::nvidia_gpus() : 0, ranks)}}});
  const Join join = channel.expect<Join>("join");
  std::vector<parallel::Endpoint> endpoints;
  std::vector<std::vector<std::string>> offers;
  for (const auto& rank : join.ranks) {
    endpoints.push_back(to_endpoint(rank));
    offers.push_back(rank.backends);
  }
  // Stages exchange messages and replicas that share matrices split the group, which is tcp's alone.
  const int replicas = start.training.is_null() ? 1 : start.training.at("replicas").get<int>();
  const bool by_tcp = plan.stages.size() > 1 || (replicas > 1 && replicas < ranks);
  const std::string backend = by_tcp ? "tcp" : parallel::choose_backend(start.backend, offers);
  if (backend != "tcp") {
    listener.close();
    return {parallel::join_mlx_group(backend, start.rank, endpoints), false};
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

// The rank's model at work, and what it tells the conductor of it.
class Work {
 public:
  // `staged`: the group has pipeline stages, so that ranks are not all at the same step.
  Work(ControlChannel& channel, engine::StepRunner runner, mx::distributed::Group group, bool staged)
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
  engine::StepResult finish() {
    engine::StepResult result;
    timed([&] { result = runner_.finish(); });
    return result;
  }
  bool can_finish() const { return runner_.can_finish(); }
  bool overlaps() const { return runner_.overlaps(); }

 private:
  template <typename Part>
  void timed(Part part) {
    const double start = now_s(), link_start = parallel::link_use(group_).seconds;
    part();
    status_.step_s += now_s() - start;
    status_.link_s += parallel::link_use(group_).seconds - link_start;
  }

  void report(std::size_t ended) {
    const auto memory = rank_memory();
    status_.resident_bytes = memory.resident_bytes;
    status_.peak_bytes = memory.peak_bytes;
    status_.cache_bytes = runner_.cache_bytes();
    status_.ended += ended;
    status_.panel_bytes = kernels::panel_bytes_read();
    channel_.send({{"status", status_}});
  }

  ControlChannel& channel_;
  engine::StepRunner runner_;
  mx::distributed::Group group_;
  bool staged_;
  Status status_;
};

// Says what the conductor takes of the events; whether that was all, after limits::idle_step at most. One
// at a time: rows of logits are large as text.
bool say(ControlChannel& channel, std::deque<engine::Event>& events) {
  using std::chrono::steady_clock;
  const auto end = steady_clock::now() + limits::idle_step;
  for (; !events.empty(); events.pop_front()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - steady_clock::now());
    if (!channel.written(left)) return false;
    channel.send(engine::to_json(events.front()));
  }
  return true;
}

// Rank 0: takes requests, decides each step, tells the others, sends the events up.
void lead(ControlChannel& channel, Work& work, engine::ServingLimits serving_limits) {
  engine::Scheduler scheduler(serving_limits);
  std::deque<engine::StepPlan> under_way;  // oldest first
  std::deque<engine::Event> unsaid;
  const auto answer = [&](std::vector<engine::Event> events) {
    std::move(events.begin(), events.end(), std::back_inserter(unsaid));
  };
  while (true) {
    // With nothing to do, wait; but step before the others' patience ends.
    const bool idle = scheduler.idle() && under_way.empty() && unsaid.empty();
    auto message = idle ? channel.receive(limits::idle_step) : channel.try_receive();
    for (; message; message = channel.try_receive()) {
      answer(scheduler.submit(engine::request_from_json(*message), now_s()));
    }
    // While the conductor does not listen, the others are told empty steps.
    const bool heard = say(channel, unsaid);
    engine::StepPlan plan;
    if (heard && (!work.overlaps() || under_way.empty())) {
      plan = scheduler.next(now_s());
    } else if (heard && under_way.size() < limits::overlapping_steps) {
      plan = scheduler.ahead();
    }
    bool wait = plan.empty() && !under_way.empty();  // nothing to compute without a step's logits
    if (!wait) {
      work.tell(plan);
      work.start(plan);
      under_way.push_back(std::move(plan));
    }
    for (; wait || work.can_finish(); wait = false) {
      answer(scheduler.finish(under_way.front(), work.finish(), now_s()));
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
  // But sums of gradients go on beside the backward, on threads that seldom compute.
  if (start.training.is_null()) hardware::prefer_no_preemption();
  if (!start.cores.empty()) hardware::keep_to_cores(start.cores);
  const int cores = start.cores.empty() ? hardware::physical_cores() / start.ranks_on_host
                                        : static_cast<int>(start.cores.size());
  kernels::set_threads(start.threads > 0 ? start.threads : std::max(1, cores));
}

void serve(ControlChannel& channel, const std::filesystem::path& cache) {
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
  const mx::Device device = choose_device(start);
  kernels::use_activations(start.activations == "float32" ? kernels::Activations::float32
                                                          : kernels::Activations::automatic);
  mx::set_default_device(device);
  bound_free_buffers(start.ranks_on_host, /*trains=*/!start.training.is_null());
  const auto plan = parallel::plan_from_json(start.plan);
  const World world = join_group(channel, start, plan);
  const auto& group = world.group;
  const auto stage = stage_group(plan, plan.place(start.rank), group);  // before messages are under way
  Model model = open_model(start, group, world.tcp, cache / "shards");
  auto& config = model.config;
  parallel::validate(plan, config.divisible(),
                     start.training.is_null() ? 1 : start.training.at("replicas").get<int>());
  config.formats.fp8_as = start.fp8 == "float32" ? weights::Fp8As::float32
                          : start.fp8 == "8bit"  ? weights::Fp8As::quantised
                                                 : weights::Fp8As::bfloat16;
  if (!start.training.is_null())
    return train(channel, start, {group, stage, world.tcp, plan, plan.place(start.rank)}, model, device);
  auto [decoder, ready] = load_part(start, model, plan, stage, device, [&](const Progress& progress) {
    channel.send({{"progress", progress}});
  });
  model.source.reset();
  const mx::Dtype activations =
      device == mx::Device::gpu ? decoder.layers.front().attention_norm.dtype() : mx::float32;
  const auto format = start.kv_bits == 8 ? kernels::KeyValueFormat::int8 : kernels::KeyValueFormat::plain;
  const int stages = static_cast<int>(plan.stages.size());
  // Where caches are written in place: MLX would copy what the step before still reads.
  const bool overlaps =
      plan.world_size() == 1 &&
      std::all_of(decoder.layers.begin(), decoder.layers.end(), [&](const models::DecoderLayer& layer) {
        const auto shape = std::visit([](const auto& a) { return models::held_shape(a); }, layer.attention);
        return kernels::has_cuda_attention(shape, format, activations, mx::default_stream(device));
      });
  channel.send({{"ready", ready}});
  channel.expect<json>("go");
  models::complete_adapter(decoder);
  Work work(channel,
            {std::move(decoder), {stage, activations}, group, plan.place(start.rank), format, overlaps},
            group, stages > 1);
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

int worker_main(const std::filesystem::path& cache) {
  ::signal(SIGPIPE, SIG_IGN);
  ControlChannel channel;
  const auto fail = [&](const char* kind, const char* message) {
    channel.send({{"failed", Failed{kind, message}}});
    channel.written(limits::worker_pipe);
    ::_exit(1);  // no destructor of a library may wait for a peer that is gone
  };
  try {
    serve(channel, cache);
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
