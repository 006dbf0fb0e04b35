#include "cluster/control_channel.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <climits>
#include <thread>

#include "base/json_lines.h"
#include "base/limits.h"
#include "cluster/protocol.h"

namespace tandem::cluster {

using nlohmann::json;
using std::chrono::steady_clock;

ControlChannel::ControlChannel() : inbox_(limits::worker_inbox) {
  // The real stdout moves away, so that no library's print can break the protocol.
  output_ = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
  ::dup2(STDERR_FILENO, STDOUT_FILENO);
  std::thread([this] { read_lines(); }).detach();
  std::thread([this] { write_lines(); }).detach();
}

void ControlChannel::send(const json& object) {
  auto line = to_json_line(object);
  const std::lock_guard lock(sending_);
  pollfd pipe{output_, POLLOUT, 0};
  // A pipe that is ready takes that much without waiting: a token needs no other thread.
  if (outbox_.empty() && line.size() <= PIPE_BUF && ::poll(&pipe, 1, 0) == 1) {
    if (!write_all(output_, line)) ::_exit(0);
    return;
  }
  outbox_.push_back(std::move(line));
  changed_.notify_all();
}

bool ControlChannel::written(std::chrono::milliseconds timeout) {
  std::unique_lock lock(sending_);
  return changed_.wait_for(lock, timeout, [&] { return outbox_.empty(); });
}

void ControlChannel::write_lines() {
  std::unique_lock lock(sending_);
  while (true) {
    changed_.wait(lock, [&] { return !outbox_.empty(); });
    const std::string& line = outbox_.front();  // there until it is written
    lock.unlock();
    if (!write_all(output_, line)) ::_exit(0);
    lock.lock();
    outbox_.pop_front();
    changed_.notify_all();
  }
}

void ControlChannel::read_lines() {
  JsonLineReader lines;
  std::array<char, 1 << 16> bytes;
  auto told = steady_clock::now();
  while (true) {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    const bool comes = ::poll(&input, 1, static_cast<int>(limits::sign_of_life.count())) > 0;
    if (const auto now = steady_clock::now(); now - told >= limits::sign_of_life) {
      if (written(std::chrono::milliseconds(0))) send({{"alive", json::object()}});
      told = now;
    }
    if (!comes) continue;
    const auto got = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) ::_exit(0);
    try {
      lines.feed({bytes.data(), static_cast<std::size_t>(got)});
      while (auto object = lines.next()) {
        if (!inbox_.try_push(std::move(*object)))
          throw ClusterError("more messages than the worker can hold");
      }
    } catch (const std::exception& error) {
      send({{"failed", Failed{"internal", error.what()}}});
      written(limits::worker_pipe);
      ::_exit(1);
    }
  }
}

}  // namespace tandem::cluster
