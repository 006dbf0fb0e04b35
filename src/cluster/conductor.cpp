#include "cluster/conductor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/rand.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/json_lines.h"
#include "base/limits.h"
#include "cluster/process.h"

namespace tandem::cluster {
namespace {

using std::chrono::milliseconds;

std::int64_t now_ms() {
  return std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string fresh_secret() {
  std::array<unsigned char, 32> bytes{};
  if (RAND_bytes(bytes.data(), bytes.size()) != 1)
    throw ClusterError("the system has no randomness for a secret");
  std::string hex;
  for (const auto byte : bytes) hex += fmt::format("{:02x}", byte);
  return hex;
}

// One worker as the conductor sees it.
struct Worker {
  ChildProcess process;
  JsonLineReader lines;
  std::string outbox;  // written as the pipe takes it, so that a stopped worker cannot block the conductor
  bool ended = false;
};

[[noreturn]] void rethrow(const GiveUp& lost) {
  if (lost.input) throw InputError(lost.message);
  throw ClusterError(lost.message);
}

}  // namespace

struct Conductor::Impl {
  struct Client {
    OnEvent on_event;
    OnLost on_lost;
  };

  std::vector<Worker> workers;      // the thread's, once it runs
  std::array<int, 2> wake{-1, -1};  // a pipe that ends the poll
  std::thread thread;

  mutable std::mutex mutex;  // guards all below
  std::condition_variable changed;
  GroupState state;
  OnLoading on_loading;
  bool stopping = false;
  bool running = false;
  std::optional<GiveUp> lost;
  std::map<std::uint64_t, Client> clients;
  std::vector<std::pair<int, std::string>> to_send;  // rank, line
  std::uint64_t next_id = 1;
  OnLost group_lost;
  std::optional<nlohmann::json> answer;  // to an order of training

  ~Impl();
  void loop();
  bool take_outgoing();
  void poll_workers();
  void read_from(int rank);
  void write_to(int rank);
  void happen(const Happening& happening);
  void carry_out(Action& action);
  void deliver(const engine::Event& event);
  void give_up(const GiveUp& why);
  void send(int rank, const nlohmann::json& object);
};

// Ends every worker: end-of-file on its stdin, then, where that does not help, a kill.
Conductor::Impl::~Impl() {
  {
    std::lock_guard lock(mutex);
    stopping = true;
  }
  (void)!::write(wake[1], "!", 1);
  if (thread.joinable()) thread.join();
  for (auto& worker : workers) worker.process.close_input();
  const auto deadline = std::chrono::steady_clock::now() + limits::worker_exit;
  for (auto& worker : workers) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now());
    worker.process.wait(std::max(left, milliseconds(0)));
  }
  for (const int end : wake) ::close(end);
}

void Conductor::Impl::send(int rank, const nlohmann::json& object) {
  to_send.emplace_back(rank, to_json_line(object));
  (void)!::write(wake[1], "!", 1);
}

void Conductor::Impl::loop() {
  while (take_outgoing()) {
    poll_workers();
    happen(Tick{});
  }
}

// False once the conductor stops.
bool Conductor::Impl::take_outgoing() {
  std::lock_guard lock(mutex);
  for (auto& [rank, line] : to_send) workers[rank].outbox += line;
  to_send.clear();
  return !stopping;
}

void Conductor::Impl::poll_workers() {
  std::vector<pollfd> polled{{wake[0], POLLIN, 0}};
  for (const auto& worker : workers) {
    const bool writes = !worker.ended && !worker.outbox.empty();
    polled.push_back({worker.ended ? -1 : worker.process.output(), POLLIN, 0});
    polled.push_back({writes ? worker.process.input() : -1, POLLOUT, 0});
  }
  ::poll(polled.data(), polled.size(), static_cast<int>(limits::conductor_tick.count()));
  std::array<char, 256> drained{};
  while (::read(wake[0], drained.data(), drained.size()) > 0) {
  }
  for (int rank = 0; rank < static_cast<int>(workers.size()); ++rank) {
    if (polled[1 + 2 * rank].revents != 0) read_from(rank);
    if (polled[2 + 2 * rank].revents != 0) write_to(rank);
  }
}

void Conductor::Impl::read_from(int rank) {
  Worker& worker = workers[rank];
  std::array<char, 1 << 16> bytes;
  const auto got = ::read(worker.process.output(), bytes.data(), bytes.size());
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    worker.ended = true;
    const auto how = worker.process.wait(limits::worker_reap);
    return happen(Ended{rank, how.value_or("closed its control channel")});
  }
  worker.lines.feed({bytes.data(), static_cast<std::size_t>(got)});
  try {
    while (auto object = worker.lines.next()) happen(Line{rank, std::move(*object)});
  } catch (const ClusterError& error) {
    worker.ended = true;
    happen(Unreadable{rank, error.what()});
  }
}

void Conductor::Impl::write_to(int rank) {
  Worker& worker = workers[rank];
  const auto written = ::write(worker.process.input(), worker.outbox.data(), worker.outbox.size());
  if (written > 0) {
    worker.outbox.erase(0, static_cast<std::size_t>(written));
  } else if (written < 0 && errno != EAGAIN && errno != EINTR) {
    worker.outbox.clear();  // it is gone; reading its end-of-file says so
  }
}

void Conductor::Impl::happen(const Happening& happening) {
  std::vector<Action> actions;
  {
    std::lock_guard lock(mutex);
    actions = advance(state, happening, now_ms());
  }
  for (auto& action : actions) carry_out(action);
}

void Conductor::Impl::carry_out(Action& action) {
  if (auto* to_rank = std::get_if<Send>(&action)) {
    std::lock_guard lock(mutex);
    send(to_rank->rank, to_rank->object);
  } else if (std::holds_alternative<Loading>(action)) {
    if (!on_loading) return;
    std::vector<Progress> progress;
    for (const auto& rank : state.ranks) progress.push_back(rank.progress);
    on_loading(progress);
  } else if (std::holds_alternative<Running>(action)) {
    std::lock_guard lock(mutex);
    running = true;
    changed.notify_all();
  } else if (const auto* event = std::get_if<Deliver>(&action)) {
    deliver(event->event);
  } else if (auto* trained = std::get_if<Trained>(&action)) {
    std::lock_guard lock(mutex);
    answer = std::move(trained->answer);
    changed.notify_all();
  } else {
    give_up(std::get<GiveUp>(action));
  }
}

void Conductor::Impl::deliver(const engine::Event& event) {
  const auto id = engine::id_of(event);
  const bool last =
      std::holds_alternative<engine::DoneEvent>(event) || std::holds_alternative<engine::RefusedEvent>(event);
  OnEvent on_event;
  {
    std::lock_guard lock(mutex);
    const auto client = clients.find(id);
    if (client == clients.end()) return;
    on_event = client->second.on_event;
    if (last) clients.erase(client);
  }
  on_event(event);
}

void Conductor::Impl::give_up(const GiveUp& why) {
  std::map<std::uint64_t, Client> stranded;
  OnLost callback;
  {
    std::lock_guard lock(mutex);
    lost = why;
    stranded.swap(clients);
    callback = group_lost;
    changed.notify_all();
  }
  for (const auto& [id, client] : stranded) client.on_lost(why.message);
  if (callback) callback(why.message);
}

std::vector<std::string> worker_command(const ConductorOptions& options, const std::string& host) {
  if (host == "local") return {options.program.string(), "worker"};
  return {"ssh",
          "-T",
          "-o",
          "BatchMode=yes",
          "-o",
          "ServerAliveInterval=5",
          "-o",
          "ServerAliveCountMax=3",
          "--",
          host,
          options.remote_program + " worker"};
}

std::vector<Start> starts(const ConductorOptions& options) {
  const int world = options.plan.world_size();
  std::map<std::string, int> ranks_on;
  for (int rank = 0; rank < world; ++rank) ++ranks_on[options.plan.rank(rank).host];
  std::vector<Start> made;
  std::size_t local = 0;
  for (int rank = 0; rank < world; ++rank) {
    const auto& host = options.plan.rank(rank).host;
    const bool pinned = host == "local" && !options.cores.empty();
    made.push_back({.rank = rank,
                    .plan = to_json(options.plan),
                    .model = options.model,
                    .shape = options.shape,
                    .cache_shards = options.cache_shards,
                    .device = options.device,
                    .backend = options.backend,
                    .fp8 = options.fp8,
                    .wire = options.wire,
                    .activations = options.activations,
                    .kv_bits = options.kv_bits,
                    .adapter = options.adapter,
                    .training = options.training ? nlohmann::json(*options.training) : nlohmann::json(),
                    .threads = options.threads,
                    .ranks_on_host = ranks_on[host],
                    .cores = pinned ? options.cores.at(local++) : std::vector<int>{},
                    .loopback = options.plan.all_local(),
                    .verbosity = options.verbosity});
  }
  return made;
}

Conductor::Conductor(ConductorOptions options, const OnLoading& on_loading)
    : impl_(std::make_unique<Impl>()) {
  Impl& impl = *impl_;
  if (::pipe(impl.wake.data()) != 0) throw ClusterError("cannot make a pipe");
  for (const int end : impl.wake) {
    ::fcntl(end, F_SETFD, FD_CLOEXEC);
    ::fcntl(end, F_SETFL, O_NONBLOCK);
  }
  const int world = options.plan.world_size();
  std::vector<std::string> hosts;
  for (int rank = 0; rank < world; ++rank) hosts.push_back(options.plan.rank(rank).host);
  for (const auto& host : hosts)
    impl.workers.push_back({ChildProcess(worker_command(options, host)), {}, {}, false});
  impl.state = begin(hosts, fresh_secret(), now_ms(), options.context);
  impl.state.trains = options.training.has_value();
  impl.on_loading = on_loading;
  for (const auto& start : starts(options)) impl.send(start.rank, {{"start", start}});
  impl.thread = std::thread([&impl] { impl.loop(); });

  std::unique_lock lock(impl.mutex);
  while (!impl.changed.wait_for(lock, limits::interrupt_poll, [&] { return impl.running || impl.lost; })) {
    if (options.on_wait) options.on_wait();
  }
  if (impl.lost) rethrow(*impl.lost);
}

Conductor::~Conductor() = default;

std::uint64_t Conductor::submit(engine::Request request, OnEvent on_event, OnLost on_lost) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->lost) throw ClusterError(impl_->lost->message);
  const auto id = impl_->next_id++;
  std::visit([id](auto& r) { r.id = id; }, request);
  impl_->clients[id] = {std::move(on_event), std::move(on_lost)};
  impl_->send(0, engine::to_json(request));
  return id;
}

void Conductor::cancel(std::uint64_t id) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->clients.contains(id)) impl_->send(0, engine::to_json(engine::Request(engine::Cancel{id})));
}

nlohmann::json Conductor::carry_out(const nlohmann::json& order, const std::function<void()>& on_wait) {
  std::unique_lock lock(impl_->mutex);
  impl_->answer.reset();
  if (!impl_->lost) impl_->send(0, {{"train", order}});
  while (
      !impl_->changed.wait_for(lock, limits::interrupt_poll, [&] { return impl_->answer || impl_->lost; })) {
    if (on_wait) on_wait();
  }
  if (!impl_->answer) rethrow(*impl_->lost);
  return *impl_->answer;
}

// It stays as it is once the group runs, which the constructor has waited for.
const Capacity& Conductor::capacity() const { return impl_->state.capacity; }

std::vector<RankState> Conductor::ranks() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->state.ranks;
}

void Conductor::on_lost(OnLost callback) {
  std::unique_lock lock(impl_->mutex);
  impl_->group_lost = std::move(callback);
  if (!impl_->lost || !impl_->group_lost) return;
  const auto message = impl_->lost->message;
  const auto call = impl_->group_lost;
  lock.unlock();
  call(message);
}

}  // namespace tandem::cluster
